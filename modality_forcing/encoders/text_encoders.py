"""The kinds of frozen text encoders: "umt5:PATH", "qwen3:PATH". Another one is one more entry."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Generic, Protocol, TypeVar, runtime_checkable

import jax.numpy as jnp
from flax import nnx

from modality_forcing.buckets import BucketPath
from modality_forcing.encoders import qwen3, qwen3_tokenizer, sentencepiece, umt5
from modality_forcing.encoders.locate import locate
from modality_forcing.encoders.text import Tokenizer
from modality_forcing.encoders.weights import Checkpoint, Tensor
from modality_forcing.errors import UserError
from modality_forcing.mirror import on_disk
from modality_forcing.paths import as_path, exists, is_dir
from modality_forcing.tree import Tree


@runtime_checkable
class StatesConfig(Protocol):
    """The sizes of a text encoder, a dataclass."""

    @property
    def width(self) -> int:
        """Channels of the states that it returns."""
        ...

    @property
    def vocab_size(self) -> int:
        """Rows of its table of tokens."""
        ...


C = TypeVar("C", bound=StatesConfig)


@dataclass(frozen=True)
class TextKind(Generic[C]):
    """How the encoders of one kind are read and called.

    read: from a config.json, and its path for messages, to sizes; what follows takes these sizes.
    build: the network, in bfloat16: (ids i32 [b l], mask bool [b l]) -> states [b l width].
    tensors: see `encoders.weights`; names are those of the file. unused: prefixes of tensors.
    tokenizer: the host side for a number of tokens and a folder with one of the sets of
    tokenizer_files. tokens: of a caption in a cache, by default. keeps_padding: whether states of
    padding are something that networks read; others are 0. published: widths, for messages.
    """

    read: Callable[[Tree, object], C]
    build: Callable[[C], nnx.Module]
    tensors: Callable[[C, Collection[str]], Mapping[str, Tensor]]
    unused: Callable[[C], Collection[str]]
    tokenizer: Callable[[int, str], Tokenizer]
    tokenizer_files: tuple[tuple[str, ...], ...]
    tokens: int
    keeps_padding: bool
    published: str

    def open_tokenizer(self, tokens: int, weights: Checkpoint, c: StatesConfig) -> Tokenizer:
        """Returns the host side of weights: captions to at most `tokens` ids.

        Its files are beside the weights, or in a folder `tokenizer` beside theirs, as in diffusers'
        pipelines. Raises UserError if there are none, or if they are those of another model.
        """
        made = self.tokenizer(tokens, str(self._tokenizer_folder(weights)))
        if made.vocab_size > c.vocab_size:
            what = f"has {made.vocab_size} tokens, and the encoder's table {c.vocab_size} rows"
            hint = "take both from the same place"
            raise UserError(what, where=getattr(made, "model", weights.where), hint=hint)
        return made

    def _tokenizer_folder(self, weights: Checkpoint) -> Path:
        folder, files = weights.folder, self.tokenizer_files
        if any(all(exists(folder / name) for name in names) for names in files):
            return folder
        patterns = [name for names in files for name in names]
        origin, parent = as_path(weights.where), weights.where.partition("@")[0].rpartition("/")[0]
        if weights.revision and "/" in parent:  # owner/name/folder of the hub
            beside = locate(f"{parent}/tokenizer@{weights.revision}", patterns).path
        elif isinstance(origin, BucketPath):
            beside = on_disk(origin.parent / "tokenizer", patterns)
        else:
            beside = folder.parent / "tokenizer"
        return beside if is_dir(beside) else folder


KINDS: Mapping[str, TextKind[Any]] = {
    "umt5": TextKind(
        read=umt5.UMT5Config.from_dict,
        build=lambda c: umt5.UMT5(c, rngs=nnx.Rngs(0), dtype=jnp.bfloat16),
        tensors=umt5.tensors,
        unused=lambda c: umt5.UNUSED,
        tokenizer=sentencepiece.SentencePieceTokenizer,
        tokenizer_files=(("spiece.model",),),
        tokens=128,
        keeps_padding=False,
        published="UMT5-XXL has 4096",
    ),
    "qwen3": TextKind(
        read=qwen3.Qwen3Config.from_dict,
        build=lambda c: qwen3.Qwen3(c, rngs=nnx.Rngs(0), dtype=jnp.bfloat16),
        tensors=qwen3.tensors,
        unused=qwen3.unused,
        tokenizer=qwen3_tokenizer.Qwen3Tokenizer,
        tokenizer_files=qwen3_tokenizer.FILES,
        tokens=512,
        keeps_padding=True,
        published="Qwen3-4B has 7680, Qwen3-8B 12288",
    ),
}
