"""Frozen encoders of a run: raw batches to the latents and text states that a network reads, and latents to pictures."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import cached_property, partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax.sharding import Mesh, NamedSharding, PartitionSpec
from jaxtyping import Array, Float, UInt8

from modality_forcing.encoders import flux2_names, umt5
from modality_forcing.encoders.flux2_vae import Decoder, Encoder, VAEConfig
from modality_forcing.encoders.pixels import from_u8
from modality_forcing.encoders.sentencepiece import Sentences
from modality_forcing.encoders.umt5 import UMT5, UMT5Config
from modality_forcing.encoders.weights import Checkpoint, load_module, open_checkpoint
from modality_forcing.errors import UserError

TEXT, IMAGE = "umt5", "flux2"  # the kinds there are: "umt5:PATH", "flux2:PATH"
BATCH = PartitionSpec(("data", "fsdp"))  # how a run's mesh splits a batch
_LEAST = 2**20  # elements of a weight that is worth sharding


class Frozen:
    """The text encoder and the autoencoder of these locations, each loaded when it is first needed.

    text: "umt5:PATH", image: "flux2:PATH"; "" where there is none. A path is what `open_checkpoint` takes. mesh: of the
    devices; a text encoder lies along its "fsdp" axis in shards, an autoencoder whole on each device. Without a mesh,
    both are on the first device.

    Text states are computed in bfloat16 (their sums in float32), latents in bfloat16 too, but on a CPU, which has no use
    for it, in float32. Raises UserError for a location of another kind, and from use for weights that cannot be loaded.
    """

    def __init__(self, text: str = "", image: str = "", mesh: Mesh | None = None):
        self._text_at = location(text, TEXT, "text.encoder")
        self._image_at = location(image, IMAGE, "autoencoder")
        self.mesh = mesh

    @property
    def has_text(self) -> bool:
        """Says whether there is a text encoder."""
        return bool(self._text_at)

    @property
    def has_image(self) -> bool:
        """Says whether there is an autoencoder."""
        return bool(self._image_at)

    def sentences(self, tokens: int) -> Sentences:
        """Returns the host's half of the text encoder: captions to at most so many token ids."""
        folder = self._text_weights.folder
        beside = folder.parent / "tokenizer"  # as pipelines of diffusers are laid out
        return Sentences(
            tokens,
            str(beside if not (folder / "spiece.model").exists() and beside.is_dir() else folder),
        )

    def encode(self, batch: Mapping[str, Any]) -> dict[str, Any]:
        """Returns a batch as the network reads it: pictures replaced by latents, token ids by states, the rest as it was."""
        made = dict(batch)
        if self.has_image:
            made["latent"] = self.latents(made.pop("image"))
        if self.has_text:
            made["text"] = self.states(made["text"])
        return made

    def states(self, text: Mapping[str, Any]) -> dict[str, Any]:
        """Returns {"tokens": bf16 [b l d], "mask"} of {"tokens": ids i32 [b l], "mask": bool [b l]}; zeros are padding."""
        return {"tokens": self._states(text["tokens"], text["mask"]), "mask": text["mask"]}

    def latents(self, image: UInt8[Array, "b h w 3"]) -> Float[Array, "b y x c"]:
        """Returns the latents of pictures, in bfloat16."""
        return self._latents(image)

    def pictures(self, latents: Float[Array, "b y x c"]) -> Float[Array, "b h w 3"]:
        """Returns pictures in [0, 1], in float32."""
        return self._pictures(latents)

    def identity(self) -> dict[str, dict[str, Any]]:
        """Returns what everything computed depends on, by kind: the checksum and revision of the weights, and their sizes."""
        told = {}
        if self.has_text:
            told["text"] = _identity(TEXT, self._text_weights, self.text_config)
        if self.has_image:
            told["image"] = _identity(IMAGE, self._image_weights, self.image_config)
        return told

    @cached_property
    def text_config(self) -> UMT5Config:
        """The sizes of the text encoder."""
        weights = self._text_weights
        if not weights.config:
            raise UserError(
                "has no config.json beside it", where=weights.where, hint="download config.json too"
            )
        return UMT5Config.from_dict(weights.config, weights.folder / "config.json")

    @cached_property
    def image_config(self) -> VAEConfig:
        """The sizes of the autoencoder."""
        return VAEConfig.from_dict(self._image_weights.config)

    @cached_property
    def _text_weights(self) -> Checkpoint:
        return open_checkpoint(self._text_at)

    @cached_property
    def _image_weights(self) -> Checkpoint:
        return open_checkpoint(self._image_at)

    @cached_property
    def _states(self) -> Callable[..., Any]:
        c, weights = self.text_config, self._text_weights
        build = lambda: UMT5(c, rngs=nnx.Rngs(0), dtype=jnp.bfloat16)
        place = None if self.mesh is None else partial(in_shards, self.mesh)
        network = load_module(
            build, umt5.tensors(c, weights.shapes), weights, place=place, unused=umt5.UNUSED
        )
        return self._compiled(network, "text")

    @cached_property
    def _latents(self) -> Callable[..., Any]:
        return self._compiled(self._half(Encoder, "encoder"), "encoder")

    @cached_property
    def _pictures(self) -> Callable[..., Any]:
        return self._compiled(self._half(Decoder, "decoder"), "decoder")

    def _half(self, kind: Callable[..., Any], part: flux2_names.Half) -> Any:
        c, weights = self.image_config, self._image_weights
        dtype = jnp.float32 if jax.default_backend() == "cpu" else jnp.bfloat16
        place = None if self.mesh is None else partial(whole, self.mesh)
        tensors, unused = flux2_names.tensors(c, weights.shapes, part), flux2_names.UNUSED[part]
        return load_module(
            lambda: kind(c, rngs=nnx.Rngs(0), dtype=dtype),
            tensors,
            weights,
            place=place,
            unused=unused,
        )

    def _compiled(self, network: nnx.Module, part: str) -> Callable[..., Any]:
        graph, weights = nnx.split(network)
        return partial(program(part, graph, self.mesh), weights)


_CALLS: Mapping[str, Callable[..., Array]] = {
    "text": lambda network, ids, mask: network(ids, mask),
    "encoder": lambda network, image: network(from_u8(image)).astype(jnp.bfloat16),
    "decoder": lambda network, latents: jnp.clip((network(latents) + 1) / 2, 0, 1),
}


def program(part: str, graph: nnx.GraphDef, mesh: Mesh | None) -> Any:
    """Returns the jitted (weights, *inputs) -> output of a network: "text", "encoder" or "decoder" of an autoencoder."""
    out = None if mesh is None else NamedSharding(mesh, BATCH)
    # The weights are an argument: closed over, they would be compiled in.
    return jax.jit(
        lambda weights, *inputs: _CALLS[part](nnx.merge(graph, weights), *inputs), out_shardings=out
    )


def location(spec: str, kind: str, option: str) -> str:
    """Returns PATH of "kind:PATH", "" of ""; raises UserError for anything else, naming the option."""
    name, colon, path = spec.partition(":")
    if spec and not (name == kind and colon and path):
        raise UserError(f"{option} is {spec!r}", hint=f"it must be {kind}:PATH")
    return path


def in_shards(mesh: Mesh, path: str, shape: tuple[int, ...]) -> NamedSharding:
    """Returns how a weight lies along the "fsdp" axis: a large one cut along its longest dimension, another one whole.

    The first dimension of stacked blocks is never cut: the scan takes it apart.
    """
    first = 1 if path.startswith("blocks.") else 0
    axes = [axis for axis in range(first, len(shape)) if shape[axis] % mesh.shape["fsdp"] == 0]
    if not axes or np.prod(shape) < _LEAST:
        return whole(mesh, path, shape)
    longest = max(axes, key=lambda axis: shape[axis])
    return NamedSharding(
        mesh, PartitionSpec(*("fsdp" if axis == longest else None for axis in range(len(shape))))
    )


def whole(mesh: Mesh, path: str, shape: tuple[int, ...]) -> NamedSharding:
    """Returns the sharding of a weight that every device has whole."""
    return NamedSharding(mesh, PartitionSpec())


def _identity(kind: str, weights: Checkpoint, c: Any) -> dict[str, Any]:
    sizes = {
        name: list(value) if isinstance(value, tuple) else value for name, value in vars(c).items()
    }
    revision = {"revision": weights.revision} if weights.revision else {}
    return {"kind": kind, "weights": weights.digest, **revision, **sizes}
