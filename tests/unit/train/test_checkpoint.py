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
from modality_forcing.train import checkpoint
from modality_forcing.train.checkpoint import Checkpoints
from modality_forcing.train.state import TrainState, abstract_model, init_state
from tests import damage, tiny

# Orbax leaves reads unfinished when one of them fails.
pytestmark = pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")

CONFIG = tiny.t2i()
EXTRA = {"data_state": {"batches": 12}, "elapsed_s": 1.5, "pending_metrics": [{"loss": 0.1}]}


@pytest.fixture(scope="module")
def state() -> TrainState:
    """A state whose weights, average and moments all differ."""
    made = init_state(CONFIG, tiny.network(CONFIG)[1])

    def fill(tree, seed):
        return jax.tree.map(jnp.asarray, tiny.perturbed({"": tree}, seed)[""])

    moments = jax.tree.map(lambda x: x if x.ndim == 0 else x + 0.25, made.opt_state)
    return TrainState(jnp.int32(3), made.params, moments, fill(made.ema, 1))


@pytest.fixture(scope="module")
def abstract() -> TrainState:
    shapes = abstract_model(CONFIG, base.build(CONFIG))[1]
    return jax.eval_shape(lambda p: init_state(CONFIG, p), shapes)


@pytest.fixture(scope="module")
def saved(tmp_path_factory, state) -> Path:
    """A workdir with one checkpoint, of step 3; for reading only."""
    workdir = tmp_path_factory.mktemp("run")
    checkpoints = Checkpoints(workdir / "checkpoints")
    checkpoints.save(state, CONFIG, EXTRA)
    checkpoints.close()
    return workdir


@pytest.fixture
def copy(tmp_path, saved) -> Path:
    """The same, to be damaged."""
    return Path(shutil.copytree(saved, tmp_path / "run"))


def restore(workdir: Path, like: TrainState):
    checkpoints = Checkpoints(workdir / "checkpoints")
    try:
        return checkpoints.restore(like)
    finally:
        checkpoints.close()


def test_restored_state_equals_the_saved_one_to_the_bit(saved, state, abstract):
    back, extra = restore(saved, abstract)
    assert jax.tree.structure(back) == jax.tree.structure(state)
    jax.tree.map(np.testing.assert_array_equal, back, state)
    assert jax.tree.map(lambda x: x.dtype, back) == jax.tree.map(lambda x: x.dtype, state)
    assert {k: extra[k] for k in EXTRA} == EXTRA


def test_metadata_numbers_keep_every_bit(tmp_path, state, abstract):
    numbers = np.random.default_rng(0).standard_normal(50).astype(np.float32)
    checkpoints = Checkpoints(tmp_path / "checkpoints")
    checkpoints.save(state, CONFIG, {"pending": [float(x) for x in numbers]})
    checkpoints.close()
    np.testing.assert_array_equal(np.float32(restore(tmp_path, abstract)[1]["pending"]), numbers)


def test_load_returns_config_and_ema(saved, state):
    for path in (saved, saved / "checkpoints", saved / "checkpoints" / "3"):
        config, params = checkpoint.load(path)
        assert config == CONFIG
        jax.tree.map(np.testing.assert_array_equal, params, state.ema)


def test_latest_is_none_without_a_checkpoint(tmp_path):
    checkpoints = Checkpoints(tmp_path / "checkpoints")
    assert checkpoints.latest() is None
    checkpoints.close()


def test_old_checkpoints_are_deleted_except_keep_steps(tmp_path, state):
    for keep, also, left in ((1, (), [12]), (2, (), [9, 12]), (1, (3, 4), [3, 12])):
        folder = tmp_path / f"{keep}{len(also)}" / "checkpoints"
        checkpoints = Checkpoints(folder, keep, also)
        for step in (3, 9, 12):
            checkpoints.save(state._replace(step=jnp.int32(step)), CONFIG, EXTRA)
        assert checkpoints.latest() == 12
        checkpoints.close()
        assert sorted(int(p.name) for p in folder.iterdir() if p.name.isdigit()) == left
        assert checkpoint.resolve_checkpoint(folder.parent).name == "12"


def test_saving_a_step_twice_writes_it_once(copy, state):
    checkpoints = Checkpoints(copy / "checkpoints")
    meta = copy / "checkpoints" / "3" / "meta"
    before = {p: p.stat().st_mtime_ns for p in meta.rglob("*")}
    checkpoints.save(state, CONFIG, {"other": 1})
    checkpoints.close()
    assert {p: p.stat().st_mtime_ns for p in meta.rglob("*")} == before


def test_unfinished_save_is_ignored_and_deleted(copy, state, abstract):
    half = copy / "checkpoints" / "7.orbax-checkpoint-tmp-123"
    shutil.copytree(copy / "checkpoints" / "3", half)
    assert checkpoint.resolve_checkpoint(copy).name == "3"
    back, _ = restore(copy, abstract)
    assert int(back.step) == 3 and not half.exists()


# ---- What a person can do to one


def biggest(folder: Path) -> Path:
    return max((p for p in folder.rglob("*") if p.is_file()), key=lambda p: p.stat().st_size)


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


def description(workdir: Path) -> Path:
    """The JSON of the checkpoint in a copy."""
    (found,) = (workdir / "checkpoints" / "3" / "meta").rglob("*metadata*")
    return found


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
    later = Checkpoints(copy / "checkpoints", max_to_keep=2)
    later.save(state._replace(step=jnp.int32(4)), CONFIG, EXTRA)
    later.close()
    biggest(copy / "checkpoints" / "4" / "params").write_bytes(b"")
    with pytest.raises(UserError, match=r"4: .*delete this folder to resume from step 3"):
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
        checkpoint.init_from_checkpoint(saved, fresh, ())
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
    out = checkpoint.init_from_checkpoint(saved, fresh, ("depth",))
    np.testing.assert_array_equal(out["trunk"]["layers"]["q"], state.ema["trunk"]["layers"]["q"])
    np.testing.assert_array_equal(out["tokenizer"]["depth"]["w"], fresh["tokenizer"]["depth"]["w"])
    with pytest.raises(UserError, match=r"missing: .*depth"):
        checkpoint.init_from_checkpoint(saved, fresh, ())


@pytest.mark.parametrize(
    ("error", "message"),
    [
        (OSError(24, "Too many open files"), r"\(Too many open files\); .* allow more open files"),
        (
            ValueError("RESOURCE_EXHAUSTED: x: No space left on device"),
            r"\(No space left on device",
        ),
        (RuntimeError("Disk quota exceeded"), r"\(Disk quota exceeded\); .* make room"),
    ],
)
def test_failed_save_names_its_own_cause(copy, state, monkeypatch, error, message):
    checkpoints = Checkpoints(copy / "checkpoints")

    def fail(*_, **__):
        raise error

    monkeypatch.setattr(checkpoints._manager, "save", fail)
    with pytest.raises(UserError, match=rf"step 4 could not be saved {message}"):
        checkpoints.save(state._replace(step=jnp.int32(4)), CONFIG, EXTRA)
    checkpoints.close()


def test_other_save_errors_pass(copy, state, monkeypatch):
    checkpoints = Checkpoints(copy / "checkpoints")

    def fail(*_, **__):
        raise RuntimeError("a bug")

    monkeypatch.setattr(checkpoints._manager, "save", fail)
    with pytest.raises(RuntimeError, match="a bug"):
        checkpoints.save(state._replace(step=jnp.int32(4)), CONFIG, EXTRA)
    checkpoints.close()
