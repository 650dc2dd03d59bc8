"""Frozen encoders of a run: raw batches to latents and text states, and latents to images."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from functools import cached_property, partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax.sharding import AbstractMesh, Mesh, NamedSharding, PartitionSpec
from jaxtyping import Array, Float, PyTree, UInt8

from modality_forcing import distributed
from modality_forcing.encoders import flux2_names
from modality_forcing.encoders.flux2_vae import Decoder, Encoder, VAEConfig
from modality_forcing.encoders.pixels import from_u8
from modality_forcing.encoders.text import Tokenizer
from modality_forcing.encoders.text_encoders import KINDS, StatesConfig, TextKind
from modality_forcing.encoders.weights import (
    Checkpoint,
    Tensor,
    check_module,
    load_module,
    named_leaves,
    open_checkpoint,
)
from modality_forcing.errors import UserError
from modality_forcing.tree import JsonObject, Tree

IMAGE = "flux2"  # the kind of autoencoder that is known
BATCH = PartitionSpec(("data", "fsdp"))  # how a run's mesh splits a batch
_MIN_SHARDED = 2**20  # elements of the smallest weight that is sharded


class _Part(NamedTuple):
    """A module, and where its arrays are."""

    build: Callable[[], nnx.Module]
    tensors: Mapping[str, Tensor]
    weights: Checkpoint
    unused: Collection[str]


class FrozenEncoders:
    """The text encoder and the autoencoder of given locations, each loaded at its first use.

    text: "umt5:PATH" or "qwen3:PATH", image: "flux2:PATH"; "" for none. `open_checkpoint` defines
    the paths. mesh: the devices; a text encoder is sharded along its "fsdp" axis, an autoencoder is
    replicated. Without a mesh, both are on the first device.

    Text states are computed in bfloat16 (sums in float32). Latents are too, but on a CPU, which
    gains nothing from it, in float32. Raises UserError for a location of another kind, and at the
    first use for weights that cannot be loaded.
    """

    def __init__(self, text: str = "", image: str = "", mesh: Mesh | None = None):
        self._text_name, self._text_at = location(text, KINDS, "text.encoder")
        _, self._image_at = location(image, (IMAGE,), "autoencoder")
        self.mesh = mesh

    @property
    def has_text(self) -> bool:
        """True if there is a text encoder."""
        return bool(self._text_at)

    @property
    def has_image(self) -> bool:
        """True if there is an autoencoder."""
        return bool(self._image_at)

    @property
    def text_kind(self) -> TextKind:
        """The kind of the text encoder that there is."""
        return KINDS[self._text_name]

    def tokenizer(self, tokens: int) -> Tokenizer:
        """Returns the host side of the text encoder: captions to at most `tokens` ids."""
        return self.text_kind.open_tokenizer(tokens, self._text_weights, self.text_config)

    def free_text(self) -> None:
        """Frees the weights of the text encoder; a later use loads them again."""
        if (encode := self.__dict__.pop("_encode_text", None)) is not None:
            for weight in jax.tree.leaves(encode.args[0]):
                weight.delete()

    def encode(self, batch: Tree) -> dict[str, PyTree]:
        """Returns the batch with latents instead of images and states instead of token ids."""
        encoded = dict(batch)
        if self.has_image:
            encoded["latent"] = self.latents(encoded.pop("image"))
        if self.has_text:
            encoded["text"] = self.states(encoded["text"])
        return encoded

    def states(self, text: Mapping[str, Array | np.ndarray]) -> dict[str, Array | np.ndarray]:
        """Encodes {"tokens": ids i32 [b l], "mask": bool [b l]}.

        Returns {"tokens": bf16 [b l d], "mask"}; padding is 0, or what the kind of encoder makes
        of it (`TextKind.keeps_padding`).
        """
        return {"tokens": self._encode_text(text["tokens"], text["mask"]), "mask": text["mask"]}

    def latents(self, image: UInt8[Array | np.ndarray, "b h w 3"]) -> Float[Array, "b y x c"]:
        """Returns the latents of images, in bfloat16."""
        return self._encode_image(image)

    def latent_program(self) -> tuple[Callable[..., Array], dict[str, Array]]:
        """Returns the function of (weights by name, images) to latents, and the weights."""
        graph, weights = nnx.split(self._load(self._image_part("encoder"), replicated))
        named, tree = named_leaves(weights)

        def latents(weights: Mapping[str, Array], image: Array) -> Array:
            ordered = [weights[name] for name in named]
            network = nnx.merge(graph, jax.tree_util.tree_unflatten(tree, ordered))
            return _CALLS["encoder"](network, image)

        return latents, named

    def decode_images(self, latents: Float[Array, "b y x c"]) -> Float[Array, "b h w 3"]:
        """Returns images in [0, 1], in float32."""
        return self._decode_image(latents)

    def identity(self) -> dict[str, JsonObject]:
        """Returns what all outputs depend on: checksum and revision of the weights, and sizes."""
        found = {}
        if self.has_text:
            sizes = {**vars(self.text_config), "width": self.text_config.width}
            found["text"] = _identity(self._text_name, self._text_weights, sizes)
        if self.has_image:
            weights = self._image_weights["encoder"]
            found["image"] = _identity(IMAGE, weights, vars(self.image_config))
        return found

    def check(self) -> None:
        """Raises UserError for weights that cannot encode, from the headers of their files."""
        parts = [self._text_part] if self.has_text else []
        parts += [self._image_part("encoder")] if self.has_image else []
        for part in parts:
            check_module(part.build, part.tensors, part.weights, part.unused)

    @cached_property
    def text_config(self) -> StatesConfig:
        """Sizes of the text encoder."""
        weights = self._text_weights
        if not weights.config:
            hint = "download config.json too"
            raise UserError("has no config.json beside it", where=weights.where, hint=hint)
        return self.text_kind.read(weights.config, weights.folder / "config.json")

    @cached_property
    def image_config(self) -> VAEConfig:
        """Sizes of the autoencoder."""
        described = self._image_weights["encoder"].config
        is_split = self._image_weights["encoder"] is not self._image_weights["decoder"]
        if is_split and "_class_name" not in described:  # it describes the release as a whole
            described = {}
        return VAEConfig.from_dict(described, self._image_weights["encoder"].folder / "config.json")

    @cached_property
    def _text_weights(self) -> Checkpoint:
        return open_checkpoint(self._text_at)

    @cached_property
    def _image_weights(self) -> Mapping[flux2_names.Half, Checkpoint]:
        return flux2_names.open_halves(self._image_at)

    @cached_property
    def _encode_text(self) -> Callable[..., Array]:
        return self._compile(self._load(self._text_part, fsdp_sharding), "text")

    @cached_property
    def _encode_image(self) -> Callable[..., Array]:
        return self._compile(self._load(self._image_part("encoder"), replicated), "encoder")

    @cached_property
    def _decode_image(self) -> Callable[..., Array]:
        return self._compile(self._load(self._image_part("decoder"), replicated), "decoder")

    @property
    def _text_part(self) -> _Part:
        c, weights, kind = self.text_config, self._text_weights, self.text_kind
        tensors = kind.tensors(c, weights.shapes)
        # `build` makes generators of its own trace.
        return _Part(partial(kind.build, c), tensors, weights, kind.unused(c))

    def _image_part(self, half: flux2_names.Half) -> _Part:
        c, weights = self.image_config, self._image_weights[half]
        dtype = jnp.float32 if distributed.backend() == "cpu" else jnp.bfloat16
        tensors = flux2_names.tensors(c, weights.shapes, half)
        module = Encoder if half == "encoder" else Decoder

        def build() -> nnx.Module:
            return module(c, rngs=nnx.Rngs(0), dtype=dtype)

        return _Part(build, tensors, weights, flux2_names.UNUSED[half])

    def _load(self, part: _Part, sharding: Callable[..., NamedSharding]) -> nnx.Module:
        at = None if self.mesh is None else partial(sharding, self.mesh)
        return load_module(part.build, part.tensors, part.weights, sharding=at, unused=part.unused)

    def _compile(self, network: nnx.Module, part: str) -> Callable[..., Array]:
        graph, weights = nnx.split(network)
        return partial(program(part, graph, self.mesh), weights)


_CALLS: Mapping[str, Callable[..., Array]] = {
    "text": lambda network, ids, mask: network(ids, mask),
    "encoder": lambda network, image: network(from_u8(image)).astype(jnp.bfloat16),
    "decoder": lambda network, latents: jnp.clip((network(latents) + 1) / 2, 0, 1),
}


def program(part: str, graph: nnx.GraphDef, mesh: Mesh | AbstractMesh | None) -> jax.stages.Wrapped:
    """Returns the jitted (weights, *inputs) -> output of "text", "encoder" or "decoder"."""
    out = None if mesh is None else NamedSharding(mesh, BATCH)

    # The weights are an argument: closed over, they would be compiled in.
    def run(weights: PyTree, *inputs: Array) -> Array:
        return _CALLS[part](nnx.merge(graph, weights), *inputs)

    return jax.jit(run, out_shardings=out)


def location(spec: str, kinds: Collection[str], option: str) -> tuple[str, str]:
    """Returns the kind and PATH of "kind:PATH", and "" twice of "".

    Raises UserError, naming the option, for a kind that is not among `kinds`.
    """
    name, colon, path = spec.partition(":")
    if spec and not (name in kinds and colon and path):
        known = " or ".join(f"{kind}:PATH" for kind in kinds)
        raise UserError(f"{option} is {spec!r}", hint=f"it must be {known}")
    return name, path


def fsdp_sharding(mesh: Mesh | AbstractMesh, path: str, shape: tuple[int, ...]) -> NamedSharding:
    """Returns the sharding of a weight: large ones split along their longest dimension.

    The first dimension of stacked blocks is never split: the scan iterates over it.
    """
    first = 1 if path.startswith("blocks.") else 0
    axes = [axis for axis in range(first, len(shape)) if shape[axis] % mesh.shape["fsdp"] == 0]
    if not axes or np.prod(shape) < _MIN_SHARDED:
        return replicated(mesh, path, shape)
    longest = max(axes, key=lambda axis: shape[axis])
    spec = ["fsdp" if axis == longest else None for axis in range(len(shape))]
    return NamedSharding(mesh, PartitionSpec(*spec))


def replicated(mesh: Mesh | AbstractMesh, path: str, shape: tuple[int, ...]) -> NamedSharding:
    """Returns the sharding of a weight of which every device has a copy."""
    return NamedSharding(mesh, PartitionSpec())


def _identity(kind: str, weights: Checkpoint, sizes: Mapping[str, object]) -> JsonObject:
    sizes = {k: list(v) if isinstance(v, tuple) else v for k, v in sizes.items()}
    revision = {"revision": weights.revision} if weights.revision else {}
    return {"kind": kind, "weights": weights.digest, **revision, **sizes}
