"""Plans of the frozen encoders: FLOPs by hand, and the real step compiled for TPU."""

from __future__ import annotations

import json
from dataclasses import replace

import jax
import numpy as np
import pytest
from flax import nnx

from modality_forcing.cli import main
from modality_forcing.encoders.text_encoders import KINDS
from modality_forcing.planning import encoders
from modality_forcing.planning.analysis import analyze
from modality_forcing.planning.compile import Bytes, Compiled, get_target
from modality_forcing.planning.roofline import Roofline

pytest.importorskip("libtpu")
SMALL = replace(encoders.XXL, vocab_size=1000, width=1024, mlp_dim=2048, heads=16, num_layers=2)


@pytest.fixture(scope="module")
def v5e():
    return get_target("v5e:2x2")


@pytest.fixture
def small(monkeypatch):
    monkeypatch.setitem(encoders.TEXTS, "text", replace(encoders.TEXTS["text"], config=SMALL))


@pytest.mark.parametrize("part", encoders.TEXTS)
def test_text_flops_equal_the_count_of_xla(part):
    ids, mask = (jax.ShapeDtypeStruct((3, 96), dtype) for dtype in (np.int32, np.bool_))
    text = encoders.TEXTS[part]
    one = {"taps": (1,)} if text.kind == "qwen3" else {"num_layers": 1}
    c = replace(text.config, vocab_size=1000, **one)  # XLA counts the body of a loop once
    graph, weights = nnx.split(nnx.eval_shape(lambda: KINDS[text.kind].build(c)))
    run = jax.jit(lambda w, *x: nnx.merge(graph, w)(*x))
    counted = run.lower(weights, ids, mask).cost_analysis()["flops"]
    # XLA also counts norms and softmax.
    assert counted / text.flops(c, 3, 96) == pytest.approx(1, abs=0.02)


@pytest.mark.parametrize(("part", "tera"), [("qwen3-4b", 2.906), ("qwen3-8b", 5.450)])
def test_flops_of_a_prompt_of_klein(part, tera):
    text = encoders.TEXTS[part]
    assert text.tokens == 512
    assert text.flops(text.config, 1, 512) / 1e12 == pytest.approx(tera, abs=0.001)


def test_image_flops_grow_with_count_and_size():
    one = encoders.image_flops("encoder", 1, 64)
    assert encoders.image_flops("encoder", 3, 64) == 3 * one
    assert 3.9 < encoders.image_flops("encoder", 1, 128) / one < 4.3


def test_text_encoder_is_sharded(v5e, small):
    found = encoders.plan("text", v5e, 2, tokens=64)
    assert found.fits and found.batch == 8 and found.units == 512
    assert "all-gather bf16" in found.collectives and found.bound and found.bound.seconds > 0
    # Of bfloat16 weights, one of four chips has a quarter, and what is replicated.
    assert found.bytes.arguments < 2 * found.params
    plain = json.loads(json.dumps(encoders.to_json(found)))
    assert plain["chips"] == 4 and plain["fits"] and 0 < plain["mfu_bound"] <= 1
    assert "tokens a second at most" in encoders.to_text(found)
    endless = replace(found, bound=replace(found.bound, unknown_loops=("while",)))
    assert "1 loop of unknown length counted once" in encoders.to_text(endless)


def test_search_stops_when_the_rate_does_not_grow(v5e, monkeypatch):
    tried = []

    def plan(part: str, target, each: int, **_: int):
        tried.append(each)
        seconds = max(each, 20)  # beyond 20 the rate stays the same
        bound = Roofline(seconds, *[0.0] * 7, ())
        made = analyze(v5e, Compiled(Bytes(0, 0, 0, 0), True, 0.0, ""), 0, 0)
        return encoders.EncodePlan(part="text", batch=each, units=each, **made | {"bound": bound})

    monkeypatch.setattr(encoders, "plan", plan)
    assert encoders.search("text", v5e).batch == 32 and tried == [8, 16, 32, 64]


def test_command_prints_json(small, capsys):
    command = ["plan", "--encode=text", "--topology=v5e:2x2"]
    assert main([*command, "--batch=8", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["part"] == "text"
    assert main([*command, "--batch=7"]) == 2
    assert "--batch 7 is not a multiple of 4 devices" in capsys.readouterr().err
