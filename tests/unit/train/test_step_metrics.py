"""Metrics of a step: noise levels, norms by group, and rows in which every example counts once."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from modality_forcing.modalities import base
from modality_forcing.train import step_metrics
from modality_forcing.train.state import abstract_model
from modality_forcing.train.step_metrics import normalize_metrics, summarize, to_values
from tests import tiny


def test_losses_are_summed_in_the_bucket_of_their_noise_level():
    t = jnp.array([0.05, 0.2, 0.39, 1.0, 0.7, 0.0])
    loss = jnp.array([1.0, 2.0, 3.0, 4.0, 100.0, 0.0])
    counted = jnp.array([True, True, True, True, False, False])
    sums, counts = step_metrics.sum_by_level(loss, t, counted)
    np.testing.assert_array_equal(sums, [1, 5, 0, 0, 4])
    np.testing.assert_array_equal(counts, [1, 2, 0, 0, 1])


examples = st.lists(
    st.tuples(st.floats(0, 1, width=32), st.integers(0, 64), st.booleans()), min_size=4, max_size=4
)


@given(st.lists(examples, min_size=1, max_size=4))
def test_row_is_the_mean_over_examples_however_they_fall_into_steps(steps):
    values = []
    for of_step in steps:
        t, loss, counted = (np.array(column) for column in zip(*of_step, strict=True))
        pair = step_metrics.sum_by_level(
            jnp.asarray(loss, jnp.float32), jnp.asarray(t, jnp.float32), jnp.asarray(counted)
        )
        values += to_values([normalize_metrics({"loss_x_by_level": pair})])
    row = summarize(values)
    flat = [(min(int(t * 5), 4), loss) for s in steps for t, loss, counted in s if counted]
    assert row.pop("loss_x") == pytest.approx(np.mean([x for _, x in flat]) if flat else 0.0)
    expected = {
        f"loss_x/t{i / 5:.1f}-{(i + 1) / 5:.1f}": np.mean([x for j, x in flat if j == i])
        for i in {j for j, _ in flat}
    }
    assert row == pytest.approx(expected)  # a bucket without examples is absent


def test_other_metrics_are_means_over_steps():
    assert summarize([{"loss": 1.0, "grad_norm": 2.0}, {"loss": 2.0, "grad_norm": 6.0}]) == {
        "loss": 1.5,
        "grad_norm": 4.0,
    }


def test_steps_of_an_earlier_version_keep_their_mean_loss():
    new = {"loss_x": 4.0, "loss_x_by_level": [[4.0, 0, 0, 0, 0], [1.0, 0, 0, 0, 0]]}
    assert summarize([{"loss_x": 2.0}, new]) == {"loss_x": 3.0, "loss_x/t0.0-0.2": 4.0}


def test_infinite_loss_of_one_example_is_not_hidden():
    loss, t = jnp.array([np.inf, 1.0]), jnp.array([0.5, 0.1])
    pair = step_metrics.sum_by_level(loss, t, jnp.array([True, True]))
    row = summarize(to_values([normalize_metrics({"loss_x_by_level": pair})]))
    assert row["loss_x"] == np.inf and row["loss_x/t0.0-0.2"] == 1.0


def test_norms_of_groups_add_up_to_the_norm_of_all():
    paths = ("trunk/layers/q", "head/depth/linear/w", "head/depth/blocks/layers/q", "tokenizer/x/w")
    tree: dict[str, object] = {}
    for i, path in enumerate(paths):
        *folders, leaf = path.split("/")
        inner = tree
        for name in folders:
            inner = inner.setdefault(name, {})  # pyright: ignore[reportAttributeAccessIssue]
        inner[leaf] = jnp.full((2, 2), i + 1.0)
    assert {k: float(v) for k, v in step_metrics.norms("grad_norm", tree).items()} == pytest.approx(
        {
            "grad_norm": np.sqrt(4 * (1 + 4 + 9 + 16)),
            "grad_norm/blocks": 2,
            "grad_norm/head_depth": np.sqrt(4 * (4 + 9)),
            "grad_norm/embed": 8,
        }
    )


def test_every_weight_of_the_network_is_in_a_group():
    config = tiny.forcing()
    _, shapes = abstract_model(config, base.build(config))
    paths = jax.tree_util.tree_leaves_with_path(shapes)
    groups = {step_metrics.norm_group(tuple(key.key for key in path)) for path, _ in paths}
    assert groups == {"embed", "blocks", "head_image", "head_depth"}
