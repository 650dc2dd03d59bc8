"""Checkpoints are restored to the bit; damaged and foreign ones are refused in one line."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from modality_forcing.config import to_dict
from modality_forcing.errors import UserError
from modality_forcing.modalities import base
from modality_forcing.models.restore import merge_params
from modality_forcing.train import checkpoint
from modality_forcing.train.saving import Checkpoints
from modality_forcing.train.state import abstract_model, init_state
from tests import damage, tiny
from tests.saved import CONFIG, EXTRA, biggest, description, restore

# Orbax leaves reads unfinished when one of them fails.
pytestmark = pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")


def start_from(path, fresh, new):
    return merge_params(checkpoint.load(path)[1], fresh, new, where=path)


def test_load_returns_config_and_ema(saved, state):
    for path in (saved, saved / "checkpoints", saved / "checkpoints" / "3"):
        config, params = checkpoint.load(path)
        assert config == CONFIG
        jax.tree.map(np.testing.assert_array_equal, params, state.ema)


# ---- What a person can do to one


def cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


DAMAGE = {
    "data cut short": lambda step, item: cut(biggest(step / item)),
    "data emptied": lambda step, item: biggest(step / item).write_bytes(b""),
    "data overwritten": lambda step, item: biggest(step / item).write_bytes(
        b"x" * biggest(step / item).stat().st_size
    ),
    "data gone": lambda step, item: biggest(step / item).unlink(),
    "item gone": lambda step, item: shutil.rmtree(step / item),
    "item emptied": lambda step, item: [
        shutil.rmtree(p) if p.is_dir() else p.unlink() for p in (step / item).iterdir()
    ],
    "tree cut short": lambda step, item: cut(step / item / "_METADATA"),
}


@pytest.mark.parametrize("item", ["params", "ema", "optimizer"])
@pytest.mark.parametrize("damage", list(DAMAGE))
def test_damaged_checkpoint_is_refused_on_resume(copy, abstract, damage, item):
    DAMAGE[damage](copy / "checkpoints" / "3", item)
    with pytest.raises(UserError, match=r"checkpoints/3: cannot be read"):
        restore(copy, abstract)


@pytest.mark.parametrize("damage", list(DAMAGE))
def test_damaged_checkpoint_is_refused_on_load(copy, damage):
    DAMAGE[damage](copy / "checkpoints" / "3", "ema")
    with pytest.raises(UserError, match=r"checkpoints/3: cannot be read"):
        checkpoint.load(copy)


@pytest.mark.parametrize(
    "text",
    ["", "{", "[]", "{}", '{"format": 99}', '{"format": 2, "config": {"trian": {}}}', "\0\0"],
)
def test_damaged_metadata_is_refused(copy, abstract, text):
    description(copy).write_text(text)
    with pytest.raises(UserError, match=r"checkpoints/3"):
        checkpoint.load(copy)
    if "format" not in text or "99" in text:
        with pytest.raises(UserError, match=r"checkpoints/3"):
            restore(copy, abstract)


def test_checkpoint_of_another_format_is_refused(copy, abstract):
    description(copy).write_text(json.dumps({"format": 1, "config": to_dict(CONFIG)}))
    for read in (checkpoint.load, lambda folder: restore(folder, abstract)):
        with pytest.raises(UserError, match=r"checkpoints/3: is of format 1, this version reads 3"):
            read(copy)


def test_checkpoint_without_checksums_is_read_and_said_so_once(copy, abstract, state, capsys):
    meta = json.loads(description(copy).read_text())
    for added in ("checksums", "checksum", "step"):
        del meta[added]
    description(copy).write_text(json.dumps(meta | {"format": 2}))
    for _ in range(2):
        jax.tree.map(np.testing.assert_array_equal, restore(copy, abstract)[0], state)
        checkpoint.load(copy)
    assert capsys.readouterr().err.count("without checksums") == 1


def rewrite(workdir: Path, change) -> None:
    """Saves other weights under the checksums of the old ones, as damage on disk would."""
    before = description(workdir).read_bytes()
    shutil.rmtree(workdir / "checkpoints" / "3")
    new = Checkpoints(workdir / "checkpoints")
    new.save(change, CONFIG, EXTRA)
    new.close()
    description(workdir).write_bytes(before)


def test_changed_weight_is_named_with_the_way_out(copy, abstract, state):
    layers = state.ema["trunk"]["layers"]
    q = layers["q"].at[0, 0, 0].multiply(-1).at[1, 2, 0].multiply(-1)  # two sign bits
    trunk = state.ema["trunk"] | {"layers": layers | {"q": q}}
    rewrite(copy, state._replace(ema=state.ema | {"trunk": trunk}))
    named = r"checkpoints/3: is damaged: ema/trunk/layers/q changed after saving; "
    with pytest.raises(UserError, match=named + "use another checkpoint or a backup"):
        checkpoint.load(copy)
    with pytest.raises(UserError, match=named + "restore it from a backup, or train again"):
        restore(copy, abstract)


def test_weights_that_are_not_finite_are_never_loaded(tmp_path, state):
    path = jax.tree_util.tree_leaves_with_path(state.ema)[0][0]
    broken = jax.tree_util.tree_map_with_path(
        lambda at, x: x.at[(0,) * x.ndim].set(jnp.nan) if at == path else x, state.ema
    )
    checkpoints = Checkpoints(tmp_path / "checkpoints")
    checkpoints.save(state._replace(ema=broken), CONFIG, EXTRA)
    checkpoints.close()
    with pytest.raises(UserError, match=r"checkpoints/3: its weights are not finite: ema/\w+/"):
        checkpoint.load(tmp_path)


def test_checkpoint_under_another_name_is_refused(copy, abstract):
    (copy / "checkpoints" / "3").rename(copy / "checkpoints" / "5")
    with pytest.raises(UserError, match=r"5: is the checkpoint of step 3 under another name"):
        restore(copy, abstract)


@pytest.fixture(scope="module")
def spare(tmp_path_factory, saved) -> Path:
    """A copy that every example of the fuzz test damages and repairs."""
    return Path(shutil.copytree(saved, tmp_path_factory.mktemp("spare") / "run"))


@given(st.data())
@damage.examples(15)
def test_any_changed_byte_or_cut_of_any_file_is_refused_or_harmless(spare, state, abstract, data):
    files = sorted(p for p in (spare / "checkpoints" / "3").rglob("*") if p.is_file())
    path = data.draw(st.sampled_from(files))
    before = path.read_bytes()
    path.write_bytes(data.draw(damage.of(before)))
    try:
        back, extra = restore(spare, abstract)
    except UserError as error:
        assert "checkpoints/3" in str(error)
    else:
        jax.tree.map(np.testing.assert_array_equal, back, state)
        assert {k: extra[k] for k in EXTRA} == EXTRA
    finally:
        path.write_bytes(before)


def test_missing_checkpoint_is_refused(tmp_path):
    with pytest.raises(UserError, match=r"none: no such checkpoint"):
        checkpoint.load(tmp_path / "none")
    with pytest.raises(UserError, match="holds no checkpoint"):
        checkpoint.load(tmp_path)
    (tmp_path / "file").write_text("x")
    with pytest.raises(UserError, match="checkpoint"):
        checkpoint.load(tmp_path / "file")


def test_weights_of_another_network_are_refused(saved):
    wider = replace(CONFIG, model=replace(CONFIG.model, width=64))
    _, fresh = tiny.network(wider)
    with pytest.raises(UserError, match=r"run.*the weights do not fit \(misshaped: .*and \d+ more"):
        start_from(saved, fresh, ())
    like = jax.eval_shape(
        lambda p: init_state(wider, p), abstract_model(wider, base.build(wider))[1]
    )
    # As runs have it: without one, old Orbax looks at no shape.
    here = jax.sharding.SingleDeviceSharding(jax.devices()[0])
    like = jax.tree.map(
        lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=here), like
    )
    with pytest.raises(UserError, match="cannot be read"):
        restore(saved, like)


def test_init_from_checkpoint_puts_the_ema_into_a_larger_network(saved, state):
    _, fresh = tiny.network(tiny.forcing(), seed=8)
    out = start_from(saved, fresh, ("depth",))
    np.testing.assert_array_equal(out["trunk"]["layers"]["q"], state.ema["trunk"]["layers"]["q"])
    np.testing.assert_array_equal(out["tokenizer"]["depth"]["w"], fresh["tokenizer"]["depth"]["w"])
    with pytest.raises(UserError, match=r"missing: .*depth"):
        start_from(saved, fresh, ())
