"""A loaded network: its size, and how its tasks are sampled."""

from __future__ import annotations

import pytest

from modality_forcing.errors import UserError
from modality_forcing.generator import Generator
from modality_forcing.inference.network import LoadedNetwork
from tests import tiny


def test_a_weight_is_of_each_condition_of_a_task(normals_pipeline: LoadedNetwork):
    network = normals_pipeline
    assert network.size == (16, 16)
    found = network.sampling("i2n", steps=3, seed=5, condition_guidance=2).options
    assert (found.condition_guidance, found.steps) == ({"image": 2.0}, 3)
    assert network.sampling("d2n", condition_guidance=3).options.condition_guidance == {"depth": 3}


def test_a_network_without_normals_makes_none():
    network = LoadedNetwork(Generator(tiny.forcing(), {}))
    with pytest.raises(UserError, match=r"i2n needs normals, .* depth only; use .*normals\.py"):
        network.sampling("i2n")
