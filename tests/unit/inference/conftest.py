"""A network of three modalities, whose programs are compiled once for all tests of a worker."""

from __future__ import annotations

import pytest

from modality_forcing.generator import Generator
from modality_forcing.inference.pipeline import Pipeline
from tests import tiny


@pytest.fixture(scope="session")
def normals_pipeline() -> Pipeline:
    """Random weights; lists are run one by one, by the program of a single input."""
    config = tiny.normals()
    return Pipeline(Generator(config, tiny.network(config)[1]), batch=1)
