"""Which fit, padding and enlargement give the best depth of a photograph; prints two tables.

    python benchmarks/photo_fits.py --checkpoint=runs/demo/forcing [--real=FOLDER]

Synthetic photographs are parts of held-out scenes of the built-in world, real ones the RGB-D frames
of a folder of samples that the tests use too. AbsRel and delta1 are at a photograph's own size,
after the affine alignment of MoGe's protocol. "center" has the pixels of --fit=crop alone, aligned
by themselves. "edges" has the pixels within 2% of the longer side from a jump of depth by 10%.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
from PIL import Image
from scipy import ndimage

from modality_forcing.data.files import DepthFormat, read_depth, read_image
from modality_forcing.data.resize import Size, Window, crop_resize_depth, crop_resize_image
from modality_forcing.evaluation.alignment import align_affine_l1
from modality_forcing.evaluation.resample import resize_prediction
from modality_forcing.generator import Generator
from modality_forcing.inference import fit as fits
from modality_forcing.inference.enlarge import enlarge_depth
from modality_forcing.inference.fit import Fitted
from modality_forcing.inference.points import depth_edges
from modality_forcing.progress import format_table
from modality_forcing.synthetic.source import Scenes

ALIGN = jax.jit(align_affine_l1)
SAMPLES = 4096  # pixels that an alignment uses
SIDE = 320  # of the synthetic photographs
ASPECTS = {"4:3": (240, 320), "3:4": (320, 240), "16:9": (180, 320), "3:1": (106, 320)}
REAL = {  # image, depth, depth per count
    "nyu": ("metric3d_nyu_demo/rgb/*", "metric3d_nyu_demo/depth/*", 0.001),
    "tum": ("open3d_tum/*color*", "open3d_tum/*depth*", 0.0002),
    "kinect": ("tsdf_fusion_rgbd/**/*color.png", "tsdf_fusion_rgbd/**/*depth.png", 0.001),
    "redwood": (
        "open3d_redwood_livingroom/**/color/*.jpg",
        "open3d_redwood_livingroom/**/depth/*.png",
        0.001,
    ),
    "phone": ("promptda_arkit/*.jpg", "promptda_arkit/*depth*.png", 0.001),
    "tartanair": ("tartanair_P000/image_left/[!.]*", "tartanair_P000/depth_left/[!.]*", None),
    "kitti": ("metric3d_kitti_demo/rgb/*", "metric3d_kitti_demo/depth/*", 1 / 256),
}


@dataclass(frozen=True)
class Frame:
    image: np.ndarray
    depth: np.ndarray
    valid: np.ndarray

    @property
    def size(self) -> Size:
        height, width = self.depth.shape
        return height, width


class Masked(Generator):
    """Reads which pixels of an image are known; the others are noise to the network."""

    def _encode(self, name: str, batch: Mapping[str, np.ndarray]):
        x0, mask = super()._encode(name, batch)
        p, (rows, columns) = self.modalities[name].patch, self.modalities[name].grid
        known = np.asarray(batch["known"].reshape(-1, rows, p, columns, p).all((2, 4)))
        return x0, mask & jnp.asarray(known.reshape(len(known), -1, 1))


def scenes(count: int) -> Iterator[Frame]:
    source = Scenes(seed=0, count=count, resolution=SIDE, split="val")
    for i, (height, width) in enumerate(list(ASPECTS.values()) * (count // len(ASPECTS))):
        record = source[i]
        top, left = (SIDE - height) // 2, (SIDE - width) // 2
        at = np.s_[top : top + height, left : left + width]
        yield Frame(record.image[at], record.depth[at], record.valid[at])


def frames(root: Path) -> Iterator[Frame]:
    for images, depths, scale in REAL.values():
        pairs = list(zip(sorted(root.glob(images)), sorted(root.glob(depths)), strict=True))
        for image_path, depth_path in pairs[:3]:
            image = read_image(image_path)
            depth, valid = read_depth(depth_path, DepthFormat(scale, max_depth=100))
            size = (
                image.shape[0] * 640 // max(image.shape),
                image.shape[1] * 640 // max(image.shape),
            )
            whole = Window(0, 0, *image.shape[:2])
            window = Window(0, 0, *depth.shape)
            depth, valid = crop_resize_depth(depth, valid, window, size)
            yield Frame(crop_resize_image(image, whole, size), depth, valid)


def padded(image: np.ndarray, fitted: Fitted, kind: str) -> np.ndarray:
    """Returns the canvas of a letterbox with another padding."""
    (placement,), canvas = fitted.placements, fitted.inputs[0]["image"]
    inner = placement.cut(canvas)
    top, left = int(placement.box.top), int(placement.box.left)
    bottom, right = canvas.shape[0] - top - len(inner), canvas.shape[1] - left - inner.shape[1]
    widths = [(top, bottom), (left, right), (0, 0)]
    if kind in ("reflect", "edge"):
        return np.pad(inner, widths, "symmetric" if kind == "reflect" else "edge")
    value = {"black": np.zeros(3), "mean": image.mean((0, 1))}[kind]
    out = np.empty_like(canvas)
    out[:] = value
    placement.cut(out)[...] = inner
    return out


def nearest(values: np.ndarray, size: Size, guide: np.ndarray) -> np.ndarray:
    return np.asarray(Image.fromarray(values).resize((size[1], size[0]), Image.Resampling.NEAREST))


def bilinear(values: np.ndarray, size: Size, guide: np.ndarray) -> np.ndarray:
    return resize_prediction(values, size)


def log_bilinear(values: np.ndarray, size: Size, guide: np.ndarray) -> np.ndarray:
    return np.exp(resize_prediction(np.log(values), size))


def bicubic(values: np.ndarray, size: Size, guide: np.ndarray) -> np.ndarray:
    image = Image.fromarray(values).resize((size[1], size[0]), Image.Resampling.BICUBIC)
    return np.maximum(np.asarray(image), 1e-3)


def guided(radius: int, epsilon: float) -> Callable:
    def enlarge(values: np.ndarray, size: Size, guide: np.ndarray) -> np.ndarray:
        return enlarge_depth(values, guide, radius=radius, epsilon=epsilon)

    return enlarge


ENLARGE = {
    "bilinear": bilinear,
    "bilinear of log depth": log_bilinear,
    "bicubic": bicubic,
    "nearest": nearest,
    **{
        f"guided, radius {radius}, {epsilon}": guided(radius, epsilon)
        for radius, epsilon in ((1, 0.01), (2, 0.003), (2, 0.01), (2, 0.03), (3, 0.01), (4, 0.01))
    },
}


def score(pred: np.ndarray, frame: Frame, mask: np.ndarray, on: np.ndarray | None = None):
    """Returns AbsRel and delta1 over `on`, by default the pixels that are aligned, `mask`."""
    at = np.flatnonzero(mask & frame.valid)
    at = at[:: max(1, len(at) // SAMPLES)][:SAMPLES]
    p, g = pred.ravel()[at], frame.depth.ravel()[at]
    pad = (0, SAMPLES - len(at))
    arrays = (jnp.asarray(np.pad(x, pad)[None].astype(np.float32)) for x in (p, g, 1 / g))
    fitted = ALIGN(*arrays)
    scale, shift = float(fitted.scale[0]), float(fitted.shift[0])
    on = mask & frame.valid if on is None else on & frame.valid
    if not on.any():
        return np.nan, np.nan
    z, t = np.maximum(scale * pred[on] + shift, 1e-6), frame.depth[on]
    return float(np.mean(np.abs(z - t) / t)), float(np.mean(np.maximum(z / t, t / z) < 1.25))


class Bench:
    def __init__(self, checkpoint: Path):
        self.plain = Generator.from_checkpoint(checkpoint)
        self.masked = Masked(self.plain.config, self.plain.params)
        self.size = self.plain.modalities["image"].size
        self.shaped: dict[tuple[int, int], Generator] = {}

    def run(self, generator: Generator, images: list[np.ndarray], **more) -> np.ndarray:
        batch = {"image": np.stack(images), **more}
        index = np.zeros(len(images), int)
        return generator.run("i2d", [""] * len(images), batch=batch, index=index).images["depth"]

    def one(self, frame: Frame, kind: str) -> tuple[np.ndarray, np.ndarray]:
        """Returns depth and valid of a frame at its size."""
        fit, _, padding = kind.partition(", ")
        if fit == "own shape":
            return self._own_shape(frame)
        fitted = fits.fit_image(frame.image, self.size, fits.parse_fit(fit))
        images = [np.asarray(x["image"]) for x in fitted.inputs]
        if padding == "unknown":
            known = np.zeros((1, *self.size), bool)
            fitted.placements[0].cut(known[0])[...] = True
            return fits.restore_depth([*self.run(self.masked, images, known=known)], fitted)
        if padding:
            images = [padded(frame.image, fitted, padding)]
        return fits.restore_depth([self.run(self.plain, [x])[0] for x in images], fitted)

    def _own_shape(self, frame: Frame) -> tuple[np.ndarray, np.ndarray]:
        """A grid of tokens of the photograph's aspect, as if padding were left out."""
        patch = max(m.patch for m in self.plain.modalities.values())
        box = fits.place(frame.size, self.size, "letterbox")[0].box
        rows, columns = (max(1, round(x / patch)) * patch for x in (box.height, box.width))
        size = rows, columns
        if size not in self.shaped:
            self.shaped[size] = Generator(self.plain.config, self.plain.params, size=size)
        fitted = fits.fit_image(frame.image, size, "stretch")
        maps = self.run(self.shaped[size], [fitted.inputs[0]["image"]])
        return fits.restore_depth([*maps], fitted)


FITS = ["letterbox, edge", "letterbox, reflect", "letterbox, mean", "letterbox, black"]
FITS += ["letterbox, unknown", "own shape", "stretch", "tiles", "crop"]


def center_mask(frame: Frame, canvas: tuple[int, int]) -> np.ndarray:
    """Returns the pixels that --fit=crop keeps."""
    window = fits.place(frame.size, canvas, "crop")[0].window
    mask = np.zeros(frame.depth.shape, bool)
    top, left = int(window.top), int(window.left)
    mask[top : top + int(window.height), left : left + int(window.width)] = True
    return mask


def fit_rows(bench: Bench, sets: dict[str, list[Frame]]) -> list[list[str]]:
    rows = []
    for kind in FITS:
        cells = [kind]
        for group in sets.values():
            whole, center = [], []
            for frame in group:
                pred, _ = bench.one(frame, kind)
                center.append(score(pred, frame, center_mask(frame, bench.size)))
                everywhere = np.ones(frame.depth.shape, bool)
                whole.append(score(pred, frame, everywhere) if kind != "crop" else (np.nan,) * 2)
            (a, d), (ca, cd) = np.mean(whole, axis=0), np.mean(center, axis=0)
            cells += [f"{a:.4f}", f"{d:.3f}", f"{ca:.4f}", f"{cd:.3f}"]
        rows.append(cells)
    return rows


def enlarge_rows(bench: Bench, sets: dict[str, list[Frame]]) -> list[list[str]]:
    rows = []
    for name, enlarge in ENLARGE.items():
        cells = [name]
        for group in sets.values():
            scores, edges = [], []
            for frame in group:
                fitted = fits.fit_image(frame.image, bench.size, "stretch")
                values = bench.run(bench.plain, [fitted.inputs[0]["image"]])[0]
                small = np.ascontiguousarray(fitted.placements[0].cut(values))
                pred = enlarge(small, frame.size, frame.image)
                everywhere = np.ones(frame.depth.shape, bool)
                jumps = depth_edges(frame.depth, frame.valid, 0.1)
                near = ndimage.binary_dilation(jumps, iterations=max(frame.depth.shape) // 50)
                scores.append(score(pred, frame, everywhere))
                edges.append(score(pred, frame, everywhere, near)[0])
            a, d = np.mean(scores, axis=0)
            cells += [f"{a:.4f}", f"{d:.3f}", f"{np.nanmean(edges):.4f}"]
        rows.append(cells)
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--checkpoint", type=Path, required=True)
    parser.add_argument("--real", type=Path, help="a folder of RGB-D samples")
    parser.add_argument("--scenes", type=int, default=40)
    options = parser.parse_args()
    rendered = list(scenes(options.scenes))
    sets = {"scenes": [x for x in rendered if max(x.depth.shape) < 3 * min(x.depth.shape)]}
    sets["3:1"] = [x for x in rendered if max(x.depth.shape) >= 3 * min(x.depth.shape)]
    if options.real:
        sets["real"] = list(frames(options.real))
    counts = ", ".join(f"{len(group)} {name}" for name, group in sets.items())
    bench = Bench(options.checkpoint)
    print(f"{bench.size[0]} px; {counts}")
    columns = ("AbsRel", "delta1", "center AbsRel", "center delta1")
    header = ["fit", *(f"{name} {column}" for name in sets for column in columns)]
    print(format_table(fit_rows(bench, sets), header))
    columns = ("AbsRel", "delta1", "edges AbsRel")
    header = ["enlarged", *(f"{name} {column}" for name in sets for column in columns)]
    print(format_table(enlarge_rows(bench, sets), header))


if __name__ == "__main__":
    main()
