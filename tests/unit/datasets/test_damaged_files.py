"""Every data set with one damaged file: one line, or records that can be stored."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from modality_forcing.data.records import check
from modality_forcing.errors import UserError
from tests import damage
from tests.unit.datasets.test_registry import PAIRS, open_root, write


@pytest.mark.hypothesis  # for tests/fuzz.py, which does not see the one inside
@pytest.mark.parametrize("name", PAIRS)
def test_damaged_data_set_is_one_line_or_gives_records(name: str, tmp_path: Path, monkeypatch):
    whole, root = tmp_path / "whole", tmp_path / "set"
    write(name, whole, monkeypatch)
    files = sorted(path.relative_to(whole) for path in whole.rglob("*") if path.is_file())

    @given(st.data())
    @damage.examples(2)
    def try_damage(data):
        shutil.rmtree(root, ignore_errors=True)
        shutil.copytree(whole, root)
        file = data.draw(st.sampled_from(files))
        before = (whole / file).read_bytes()
        edited = file.suffix == ".json" and data.draw(st.booleans())
        (root / file).write_bytes(data.draw((damage.of_json if edited else damage.of)(before)))
        try:
            source = open_root(name, root)
        except UserError as error:
            assert "\n" not in str(error)
            return
        for index in range(len(source)):
            try:
                check(source[index])
            except (UserError, ValueError) as error:  # which `mforce prepare` counts and lists
                assert "\n" not in str(error)

    try_damage()
