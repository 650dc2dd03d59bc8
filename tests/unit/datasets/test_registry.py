"""The registry: what every data set provides, and unknown names."""

from __future__ import annotations

import importlib.util
from pathlib import Path

import pytest

from modality_forcing.datasets import registry
from modality_forcing.datasets.registry import NAMES, check_split, find_dataset
from modality_forcing.errors import UserError

HERE = Path(registry.__file__).parent


def test_every_module_of_the_folder_is_registered():
    assert (
        sorted(NAMES)
        == list(NAMES)
        == sorted(
            path.stem for path in HERE.glob("*.py") if path.stem not in ("__init__", "registry")
        )
    )


@pytest.mark.parametrize("name", NAMES)
def test_every_data_set_has_a_description(name: str, tmp_path: Path):
    if name == "tfds_images" and importlib.util.find_spec("tensorflow_datasets") is None:
        with pytest.raises(
            UserError, match=r"needs the package tensorflow_datasets; pip install .*\[tfds\]"
        ):
            find_dataset(name)
        return
    dataset = find_dataset(name)
    assert (
        dataset.name == name and dataset.title and dataset.license and "all" not in dataset.splits
    )
    assert check_split(dataset, "") == dataset.splits[0]
    for root in (tmp_path / "none", tmp_path):
        with pytest.raises(UserError) as caught:
            source = dataset.open(root, dataset.splits[0])
            len(source)
        assert str(caught.value).startswith(str(root)) and "\n" not in str(caught.value)


def test_missing_package_is_reported_with_its_extra(monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(
        UserError, match=r"hypersim needs the package h5py; pip install .*\[datasets\]"
    ):
        find_dataset("hypersim")
    assert find_dataset("tum").name == "tum"


def test_unknown_names_and_splits_are_refused():
    with pytest.raises(UserError, match="did you mean tartanair"):
        find_dataset("TartanAirV2")
    with pytest.raises(UserError, match="no split 'test'; choose one of train"):
        check_split(find_dataset("tum"), "test")
