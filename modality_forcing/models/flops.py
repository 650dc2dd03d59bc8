"""FLOPs of the network and of a train step, counted from the config: the basis of MFU.

The convention, here and wherever a table has MFU:

- A multiply-add is 2 FLOPs. A backward pass is twice its forward pass, even where an input needs
  no gradient. Of weights that do not train (train.freeze) it is once: their gradient is not
  computed, that of their input is.
- Attention is bidirectional and counted in full: 4 n² h k per block and example, the two products
  of n x n weights.
- Only matrix products count: no norms, softmax, RoPE, activations, look-ups, optimizer.
- Recomputation in the backward pass does not count. Padding and masked text count: they are not
  cheaper.
- Modulation and timestep embedders act once per example, not per token.

XLA's own count is no substitute: it counts a loop's body once and a kernel as nothing.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, fields

import jax
from jaxtyping import PyTree

from modality_forcing.config import Config, ModelConfig
from modality_forcing.models.dit import Stream
from modality_forcing.models.layers import SINUSOID
from modality_forcing.models.presets import block_parameters


@dataclass(frozen=True)
class Flops:
    """FLOPs by part of the network."""

    trunk: int  # tokens times weights of the trunk's blocks
    attention: int  # tokens times tokens in the trunk
    detokenizers: int  # both, in the blocks of single modalities
    ends: int  # tokenizers, text, noise levels, modulation, heads

    @property
    def total(self) -> int:
        """All parts together."""
        return sum(getattr(self, f.name) for f in fields(self))

    def __add__(self, other: Flops) -> Flops:
        return Flops(*(getattr(self, f.name) + getattr(other, f.name) for f in fields(self)))

    def __mul__(self, times: int) -> Flops:
        return Flops(*(times * getattr(self, f.name) for f in fields(self)))


@dataclass(frozen=True)
class Parameters:
    """Counts of weights."""

    trunk: int  # the trunk's blocks: N of a scaling law
    detokenizers: int  # the blocks of single modalities
    rest: int

    @property
    def total(self) -> int:
        """All parts together."""
        return self.trunk + self.detokenizers + self.rest


def forward_flops(
    config: Config, modalities: Mapping[str, Stream], only: Iterable[str] | None = None
) -> Flops:
    """Returns the FLOPs of one example's forward pass; only: the modalities in the input."""
    c, d = config.model, config.model.width
    streams = [m for name, m in modalities.items() if only is None or name in set(only)]
    m, n = len(streams), tokens(config, modalities, only)
    blocks = c.double_layers + c.num_layers  # a token meets as many weights in either
    detokenizers = 0
    for s in streams:
        layer = 2 * _length(s) * block_parameters(c) + _attention(c, _length(s))
        detokenizers += s.detokenizer_layers * layer

    text = 2 * config.text.tokens * config.text.channels * d
    tokenizers_and_heads = sum(2 * 2 * _length(s) * s.channels * d for s in streams)
    # Of each modality, and of each ordered pair.
    embedders = (m * m if c.level_mixing else m) * 2 * (SINUSOID * d + d * d)
    # Of trunk, head and detokenizer.
    modulation = 2 * d * d * sum(3 + 2 + (3 if s.detokenizer_layers else 0) for s in streams)
    if c.double_layers:
        modulation += 2 * d * d * 6 * (m + 1)  # of double blocks, text's too
    return Flops(
        trunk=2 * blocks * n * block_parameters(c),
        attention=blocks * _attention(c, n),
        detokenizers=detokenizers,
        ends=text + tokenizers_and_heads + embedders + modulation,
    )


def step_flops(config: Config, modalities: Mapping[str, Stream], *, frozen: PyTree = None) -> Flops:
    """Returns the FLOPs of a train step: 3 forward passes, and one of a distillation teacher.

    Of frozen weights it is 2 forward passes. frozen: a tree of those weights, or of their
    shapes.
    """
    each = forward_flops(config, modalities) * 3 + weight_flops(config, modalities, frozen) * -1
    if config.train.distill:
        each += forward_flops(config, modalities, only=[next(iter(modalities))])
    return each * config.train.batch


def weight_flops(config: Config, modalities: Mapping[str, Stream], params: PyTree) -> Flops:
    """Returns the FLOPs of one example's products with some of the weights, in one direction."""
    found = dict.fromkeys((f.name for f in fields(Flops)), 0)
    for path, leaf in jax.tree_util.tree_leaves_with_path(params):
        names = [key.key for key in path]
        if leaf.ndim - ("layers" in names) < 2 or names[-1] == "table":  # no product
            continue
        part = _kind(names)
        uses = _uses(names, config, modalities)
        found["ends" if part == "rest" else part] += 2 * leaf.size * uses
    return Flops(**found)


def _uses(names: list[str], config: Config, modalities: Mapping[str, Stream]) -> int:
    """Returns how many vectors of an example a weight is multiplied with, by its path."""
    match names:
        case ("trunk" | "single", *_):
            return tokens(config, modalities)
        case ("text_embedder" | "text_in", *_) | ("double", "layers", "text", *_):
            return config.text.tokens
        case (
            ("double", "layers", name, *_)
            | ("tokenizer", name, *_)
            | ("head", name, "linear" | "blocks", *_)
        ):
            return _length(modalities[name])
        case ("modulation", "w"):
            return len(modalities)
    return 1  # per example: noise levels and modulation


def tokens(
    config: Config, modalities: Mapping[str, Stream], only: Iterable[str] | None = None
) -> int:
    """Returns the length of one example's sequence, text included."""
    names = set(modalities if only is None else only)
    return config.text.tokens + sum(_length(s) for name, s in modalities.items() if name in names)


def parameters(params: PyTree) -> Parameters:
    """Counts a tree of weights, or of their shapes as returned by train.state.abstract_model."""
    counts = {"trunk": 0, "detokenizers": 0, "rest": 0}
    for path, leaf in jax.tree_util.tree_leaves_with_path(params):
        counts[_kind([key.key for key in path])] += leaf.size
    return Parameters(**counts)


def _kind(names: list[str]) -> str:
    """Returns the part of the network that a weight belongs to: a field of Parameters."""
    if names[0] in ("trunk", "double", "single"):
        return "trunk"
    return "detokenizers" if names[0] == "head" and "blocks" in names else "rest"


def _attention(c: ModelConfig, n: int) -> int:
    return 4 * n * n * c.heads * c.head_dim


def _length(stream: Stream) -> int:
    return stream.grid[0] * stream.grid[1]
