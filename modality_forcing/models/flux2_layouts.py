"""The published layouts of FLUX.2 transformers: which tensor of a file holds which weights.

The release of Modality Forcing has Black Forest Labs' names, and further ones for its depth stream;
diffusers splits queries, keys and values. Matrices of files are [out, in], ours [in, out]. Two
conventions differ: files rotate neighboring channels of a head together, `models/rope.py` channels
of its two halves; and the velocity of files is noise - data, ours data - noise. `stored` and
`restored` convert, bit for bit reversible.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass

import numpy as np

from modality_forcing.data.names import list_some
from modality_forcing.errors import UserError

Shape = tuple[int, ...]
INTERLEAVED = ("q", "k", "q_scale", "k_scale")  # permuted per head
NEGATED = "head/image/linear/w"


@dataclass(frozen=True)
class Entry:
    """A tensor of a file: arrays of ours, side by side along one axis of it.

    name: with {i} for the layer, in arrays whose leading axis counts layers.
    axis: 0 for outputs, 1 for inputs. swapped: its halves along `axis` are in the other order.
    """

    name: str
    parts: tuple[str, ...]
    axis: int = 0
    swapped: bool = False

    @property
    def stacked(self) -> bool:
        """True if there is one such tensor for each layer."""
        return "{i}" in self.name

    def shape(self, shapes: Mapping[str, Shape]) -> Shape:
        """Returns the tensor's shape, from those of our arrays by path."""
        parts = [shapes[path][int(self.stacked) :][::-1] for path in self.parts]
        if not parts[0]:
            return (1,)
        return tuple(
            sum(part[axis] for part in parts) if axis == self.axis else size
            for axis, size in enumerate(parts[0])
        )


@dataclass(frozen=True)
class Slot:
    """Where an array of ours is in a file: an entry, and where its part begins on that axis."""

    path: str
    entry: Entry
    start: int
    head_dim: int = 0  # of a permuted array


@dataclass(frozen=True)
class Layout:
    """A published layout.

    file: the name of exported files, without its suffix. max_bytes: of one of them; None: one file
    holds everything, as the layout's own code reads it.
    """

    name: str
    entries: tuple[Entry, ...]
    file: str
    max_bytes: int | None = None

    def select(self, shapes: Mapping[str, Shape]) -> list[Entry]:
        """Returns the tensors of a network with arrays of these paths.

        Raises UserError for an array that the layout cannot hold.
        """
        chosen = [entry for entry in self.entries if set(entry.parts) <= set(shapes)]
        if left := sorted(set(shapes) - {path for entry in chosen for path in entry.parts}):
            what = f"the layout {self.name} has no tensor for {list_some(left)}"
            if left == ["table"]:
                what = "the run has learned words (text.vocab_size), which no layout holds"
                raise UserError(what, hint="export it with --format instead")
            raise UserError(what, hint=f"choose one of {', '.join(LAYOUTS)} that has")
        return chosen

    def tensors(self, shapes: Mapping[str, Shape]) -> Iterator[tuple[str, Entry, int]]:
        """Yields the name, the entry and the layer of each tensor of a network."""
        for entry in self.select(shapes):
            layers = shapes[entry.parts[0]][0] if entry.stacked else 1
            for i in range(layers):
                yield entry.name.format(i=i), entry, i

    def shapes(self, shapes: Mapping[str, Shape]) -> dict[str, Shape]:
        """Returns the shape of each tensor of a network, by name."""
        return {name: entry.shape(shapes) for name, entry, _ in self.tensors(shapes)}

    def slots(self, shapes: Mapping[str, Shape]) -> dict[str, Slot]:
        """Returns where each array of a network is, by path."""
        found = {}
        for entry in self.select(shapes):
            start = 0
            for path in entry.parts:
                found[path] = Slot(path, entry, start, head_dim(path, shapes))
                inner = shapes[path][int(entry.stacked) :][::-1]
                start += inner[entry.axis] if inner else 1
        return found


def head_dim(path: str, shapes: Mapping[str, Shape]) -> int:
    """Returns the head dimension of an array that is permuted per head, 0 for others."""
    owner, _, last = path.rpartition("/")
    return shapes[f"{owner}/q_scale"][-1] if last in INTERLEAVED else 0


def restored(array: np.ndarray, slot: Slot) -> np.ndarray:
    """Returns our array, [in, out] for matrices, from its whole heads as stored."""
    if slot.head_dim:  # channels 0, 2, ..., 1, 3, ...
        array = _swapped(array, slot.head_dim // 2, 2)
    return -array.T if slot.path == NEGATED else array.T


def stored(array: np.ndarray, slot: Slot) -> np.ndarray:
    """Inverts `restored`."""
    array = array.T
    if slot.head_dim:
        array = _swapped(array, 2, slot.head_dim // 2)
    return -array if slot.path == NEGATED else array


def _swapped(array: np.ndarray, outer: int, inner: int) -> np.ndarray:
    """Returns the rows of each head, outer x inner of them, in the order of inner x outer."""
    bits = np.ascontiguousarray(array.view(f"u{array.dtype.itemsize}"))  # copied faster as such
    heads = bits.reshape(-1, outer, inner, *array.shape[1:])
    return heads.swapaxes(1, 2).reshape(array.shape).view(array.dtype)


def _mlp(name: str, path: str, first: str, second: str) -> list[Entry]:
    return [
        Entry(f"{name}.{first}.weight", (f"{path}/inner/w",)),
        Entry(f"{name}.{second}.weight", (f"{path}/outer/w",)),
    ]


def _scales(name: str, path: str, query: str, key: str) -> list[Entry]:
    return [
        Entry(f"{name}{query}", (f"{path}/q_scale",)),
        Entry(f"{name}{key}", (f"{path}/k_scale",)),
    ]


def _paths(path: str, last: str) -> tuple[str, ...]:
    return tuple(f"{path}/{name}" for name in last.split())


def _single(name: str, path: str, names: tuple[str, str, str, str]) -> list[Entry]:
    """Returns the tensors of single blocks: all that reads the input, all that writes, scales."""
    inner, outer, query, key = names
    return [
        Entry(f"{name}{inner}", _paths(path, "q k v gate up")),
        Entry(f"{name}{outer}", _paths(path, "out down"), axis=1),
        *_scales(name, path, query, key),
    ]


def _bfl() -> Iterator[Entry]:
    streams = {"text": "txt", "image": "img", "depth": "depth"}
    for path, name in {
        "text_in": "txt_in",
        "tokenizer/image": "img_in",
        "tokenizer/depth": "depth_in",
    }.items():
        yield Entry(f"{name}.weight", (f"{path}/w",))
    for path, name in {
        "level_embedder/image": "time_in",
        "level_embedder/depth": "time_in_depth",
        "level_embedder_cross/image_from_depth": "time_in_depth_to_img",
        "level_embedder_cross/depth_from_image": "time_in_rgb_to_depth",
        "guidance_embedder": "guidance_in",
    }.items():
        yield from _mlp(name, path, "in_layer", "out_layer")
    yield Entry("cross_alpha_img", ("level_gate_cross/image_from_depth",))
    yield Entry("cross_alpha_depth", ("level_gate_cross/depth_from_image",))
    for stream, name in streams.items():
        yield Entry(f"double_stream_modulation_{name}.lin.weight", (f"modulation/{stream}/w",))
    for path, name in {
        "single_modulation/image": "single_stream_modulation",
        "single_modulation/depth": "single_stream_modulation_depth",
        "head/depth/block_modulation": "depth_decoder_modulation",
    }.items():
        yield Entry(f"{name}.lin.weight", (f"{path}/w",))
    for stream, name in streams.items():
        path, block = f"double/layers/{stream}", f"double_blocks.{{i}}.{name}"
        yield Entry(f"{block}_attn.qkv.weight", _paths(path, "q k v"))
        yield from _scales(f"{block}_attn.norm.", path, "query_norm.scale", "key_norm.scale")
        yield Entry(f"{block}_attn.proj.weight", _paths(path, "out"))
        yield Entry(f"{block}_mlp.0.weight", _paths(path, "gate up"))
        yield Entry(f"{block}_mlp.2.weight", _paths(path, "down"))
    names = ("linear1.weight", "linear2.weight", "norm.query_norm.scale", "norm.key_norm.scale")
    yield from _single("single_blocks.{i}.", "single/layers", names)
    yield from _single("depth_decoder_blocks.{i}.", "head/depth/blocks/layers", names)
    for modality, name in {"image": "final_layer", "depth": "depth_final_layer"}.items():
        yield Entry(f"{name}.adaLN_modulation.1.weight", (f"head/{modality}/modulation/w",))
        yield Entry(f"{name}.linear.weight", (f"head/{modality}/linear/w",))


def _diffusers() -> Iterator[Entry]:
    yield Entry("context_embedder.weight", ("text_in/w",))
    yield Entry("x_embedder.weight", ("tokenizer/image/w",))
    embedders = {"timestep": "level_embedder/image", "guidance": "guidance_embedder"}
    for name, path in embedders.items():
        name = f"time_guidance_embed.{name}_embedder"
        yield from _mlp(name, path, "linear_1", "linear_2")
    for stream, name in {"text": "txt", "image": "img"}.items():
        yield Entry(f"double_stream_modulation_{name}.linear.weight", (f"modulation/{stream}/w",))
    yield Entry("single_stream_modulation.linear.weight", ("single_modulation/image/w",))
    for stream, names, out, mlp in (
        ("image", ("to_q", "to_k", "to_v", "norm_q", "norm_k"), "to_out.0", "ff"),
        (
            "text",
            ("add_q_proj", "add_k_proj", "add_v_proj", "norm_added_q", "norm_added_k"),
            "to_add_out",
            "ff_context",
        ),
    ):
        path, block = f"double/layers/{stream}", "transformer_blocks.{i}."
        arrays = dict(zip(("q", "k", "v", "q_scale", "k_scale"), names, strict=True)) | {"out": out}
        for array, name in arrays.items():
            yield Entry(f"{block}attn.{name}.weight", (f"{path}/{array}",))
        yield Entry(f"{block}{mlp}.linear_in.weight", _paths(path, "gate up"))
        yield Entry(f"{block}{mlp}.linear_out.weight", _paths(path, "down"))
    names = ("to_qkv_mlp_proj.weight", "to_out.weight", "norm_q.weight", "norm_k.weight")
    yield from _single("single_transformer_blocks.{i}.attn.", "single/layers", names)
    yield Entry("norm_out.linear.weight", ("head/image/modulation/w",), swapped=True)
    yield Entry("proj_out.weight", ("head/image/linear/w",))


_PREFIXES = ("model.diffusion_model.", "dit.")
_KLEIN = tuple(e for e in _bfl() if not any("depth" in path for path in e.parts))
BFL = Layout("bfl", _KLEIN, "flux2")
DIFFUSERS = Layout("diffusers", tuple(_diffusers()), "diffusion_pytorch_model", 10**10)
FORCING = Layout("modality-forcing", tuple(_bfl()), "model")
LAYOUTS = {layout.name: layout for layout in (BFL, DIFFUSERS, FORCING)}


def recognize(names: Collection[str], where: object = None) -> tuple[Layout, str]:
    """Returns the layout of a file's names, and the prefix of all of them.

    Raises UserError for the names of another network.
    """
    first = ("img_in.weight", "double_blocks.0.img_attn.qkv.weight")
    for prefix in ("", *_PREFIXES):
        if any(prefix + name in names for name in first):
            return FORCING, prefix  # whose names include BFL's
    if "x_embedder.weight" in names or "single_transformer_blocks.0.attn.to_out.weight" in names:
        return DIFFUSERS, ""
    what = f"is not a FLUX.2 transformer: it holds {list_some(sorted(names)) or 'nothing'}"
    hint = "give the transformer's file, or a folder of its files, as in transformer/"
    raise UserError(what, where=where, hint=hint)
