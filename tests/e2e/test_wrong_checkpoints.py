"""User errors with checkpoints: one line, exit code 2, nothing written."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import jax
import numpy as np
import pytest

from modality_forcing.text_io import json_checksum
from modality_forcing.tree import flatten, unflatten
from tests import tiny
from tests.runs import CONFIGS, SMALL, Command, attempt, process, refused, save

FORCING = f"--config={CONFIGS / 'demo.py'}:phase=forcing"

# ---- Checkpoints

READERS = {
    "sample": ["sample", "--mode=joint", "--out={out}"],
    "evaluate": ["evaluate", "--out={out}"],
    "export": ["export", "--out={out}"],
}


def read_refused(
    mforce: Command,
    sample_dir: Path,
    message: str,
    run: Path,
    readers=("sample", "evaluate", "export"),
) -> None:
    for reader in readers:
        arguments = [
            argument.replace("{out}", str(sample_dir / "out")) for argument in READERS[reader]
        ]
        attempt(mforce, sample_dir, message, *arguments, "--checkpoint", run)


def test_missing_checkpoint_is_refused(mforce: Command, sample_dir: Path):
    read_refused(
        mforce, sample_dir, r"nowhere: no such checkpoint; give a workdir", sample_dir / "nowhere"
    )
    read_refused(
        mforce, sample_dir, r"empty: holds no checkpoint; give a workdir", sample_dir / "empty"
    )
    read_refused(mforce, sample_dir, r"file: holds no checkpoint", sample_dir / "file")


def changed(weights: dict, change: str) -> dict:
    """Writes weights with one array missing, added, or of another shape."""
    flat = flatten(weights)
    path = next(p for p in sorted(flat) if p.startswith("head/image") and flat[p].ndim == 2)
    if change == "missing":
        del flat[path]
    elif change == "extra":
        flat["head/normals/w"] = np.zeros((2, 2), np.float32)
    else:
        flat[path] = np.zeros((3, 5), np.float32)
    return unflatten(flat)


@pytest.mark.parametrize("change", ["missing", "extra", "misshaped"])
def test_checkpoint_of_another_network_is_refused(mforce: Command, sample_dir: Path, change: str):
    weights = changed(tiny.network(tiny.forcing())[1], change)
    run = save(
        sample_dir / "run",
        tiny.forcing(),
        tiny.network(tiny.forcing())[1],
        ema=jax.tree.map(np.asarray, weights),
    )
    message = {
        "missing": r"run: the weights do not fit \(missing: head/image/\S+\)",
        "extra": r"run: the weights do not fit \(extra: head/normals/w\)",
        "misshaped": r"run: the weights do not fit \(misshaped: head/image/\S+ \(3, 5\) instead of",
    }[change]
    read_refused(mforce, sample_dir, message, run)
    if change == "missing":
        again = [
            "train",
            FORCING,
            f"--config.train.init_from={run}",
            *SMALL,
            "--workdir",
            sample_dir / "new",
        ]
        attempt(mforce, sample_dir, r"run: the weights do not fit", *again)


def test_t2i_checkpoint_needs_its_new_modalities_named(
    mforce: Command, sample_dir: Path, t2i_run: Path
):
    arguments = [
        "train",
        FORCING,
        f"--config.train.init_from={t2i_run}",
        "--config.train.allow_missing_modalities=()",
        *SMALL,
        "--workdir",
        sample_dir / "new",
    ]
    attempt(mforce, sample_dir, r"the weights do not fit \(missing: ", *arguments)


def damage_meta(change: Callable[[dict], object]) -> Callable[[Path], None]:
    def damage(step: Path) -> None:
        path = step / "meta/metadata"
        path.write_text(json.dumps(change(json.loads(path.read_text()))))

    return damage


def cut_largest(step: Path) -> None:
    largest = max(
        (step / "ema").rglob("*"), key=lambda path: path.stat().st_size if path.is_file() else 0
    )
    largest.write_bytes(largest.read_bytes()[:100])


def remove_arrays(step: Path) -> None:
    for path in (step / "ema").rglob("d/*"):
        path.unlink()


def with_config_key(meta: dict, key: str) -> dict:
    """The description as another version wrote it, with its checksum."""
    del meta["checksum"]
    meta = meta | {"config": meta["config"] | {key: 1}}
    return meta | {"checksum": json_checksum(meta)}


DAMAGE = {
    "no_weights": (lambda step: shutil.rmtree(step / "ema"), r"cannot be read"),
    "no_arrays": (remove_arrays, r"cannot be read"),
    "cut_array": (cut_largest, r"cannot be read"),
    "no_listing": (lambda step: (step / "ema/_METADATA").unlink(), r"cannot be read"),
    "cut_meta": (lambda step: (step / "meta/metadata").write_text('{"format'), r"cannot be read"),
    "meta_of_another_kind": (damage_meta(lambda meta: [1, 2]), r"damaged|cannot be read"),
    "meta_without_config": (damage_meta(lambda meta: {"format": meta["format"]}), r"damaged"),
    "another_format": (
        damage_meta(lambda meta: meta | {"format": 99}),
        r"is of format 99, this version reads 3",
    ),
    "unknown_key": (
        damage_meta(lambda meta: with_config_key(meta, "colour")),
        r"unknown config key 'colour'",
    ),
    "edited_config": (
        damage_meta(lambda meta: meta | {"config": meta["config"] | {"seed": 1}}),
        r"checkpoints/0: its description is damaged; use another checkpoint or a backup",
    ),
}


@pytest.mark.parametrize(("damage", "message"), DAMAGE.values(), ids=DAMAGE)
def test_damaged_checkpoint_is_refused(
    mforce: Command, sample_dir: Path, forcing_run: Path, damage, message
):
    run = shutil.copytree(forcing_run, sample_dir / "run")
    damage(run / "checkpoints/0")
    read_refused(mforce, sample_dir, message, run, readers=("sample",))


def test_damaged_checkpoint_is_one_line_in_a_real_process(sample_dir: Path, forcing_run: Path):
    run = shutil.copytree(forcing_run, sample_dir / "run")
    remove_arrays(run / "checkpoints/0")
    refused(
        process("sample", "--checkpoint", run, "--mode=joint", f"--out={sample_dir}/out"),
        r"cannot be read",
    )
    assert not (sample_dir / "out").exists()
