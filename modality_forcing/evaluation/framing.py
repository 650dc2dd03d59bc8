"""From a benchmark's frame to what a model is shown of it and what its answer is compared with, and the answer put there."""

from __future__ import annotations

from typing import Literal, NamedTuple, get_args

import numpy as np
from PIL import Image

from modality_forcing.data.resize import Window, crop_resize_image
from modality_forcing.errors import UserError
from modality_forcing.evaluation.benchmarks.registry import Benchmark, Frame
from modality_forcing.evaluation.views import drop_far, warp

ViewName = Literal["square", "moge", "frame"]
VIEWS: dict[ViewName, str] = {
    "square": "the largest square view through the middle of the frame, at the model's own resolution",
    "moge": "MoGe's view of the set, at its published size; the model sees all of it, squeezed to its square",
    "frame": "the frame as stored, scored at its own size; the model sees all of it, squeezed to its square",
}


class Scored(NamedTuple):
    """A frame as it is scored: h x w pixels, of which the model sees r x r."""

    name: str
    image: np.ndarray  # u8 [r r 3], what the model is shown
    picture: np.ndarray  # u8 [h w 3], the same at the size of the truth
    truth: np.ndarray  # f32 [h w]
    valid: np.ndarray  # bool [h w]
    camera: bool  # whether the frame came with one; without, its axis is taken to pass through the middle


def view_name(text: str) -> ViewName:
    """Returns the name of a view, or raises UserError with those there are."""
    if text not in VIEWS:
        raise UserError(
            f"unknown view {text!r}", hint=f"choose one of {', '.join(get_args(ViewName))}"
        )
    return text  # pyright: ignore[reportReturnType]


def view_size(benchmark: Benchmark, view: ViewName, resolution: int) -> tuple[int, int] | None:
    """Returns (width, height) of what is scored, or None where every frame has its own."""
    return {"square": (resolution, resolution), "moge": benchmark.size, "frame": None}[view]


def scored(frame: Frame, benchmark: Benchmark, view: ViewName, resolution: int) -> Scored:
    """Returns a frame as a view has it; a model of r x r pixels has `resolution` r.

    "square" and "moge" are what MoGe's benchmark loader makes of a frame at those sizes (evaluation/views.py), its limit on far
    depth included. Where the layout tells no camera, the frame's principal point is taken to be its middle, and nothing
    is turned. Raises UserError for intrinsics that are no camera's.
    """
    size = view_size(benchmark, view, resolution)
    image, truth, valid = frame.image, frame.depth, frame.valid
    if size is not None:
        intrinsics = _straight(truth.shape) if frame.intrinsics is None else frame.intrinsics
        seen = warp(image, truth, valid, intrinsics, size)
        image, truth, valid = seen.image, seen.depth, drop_far(seen.depth, seen.valid)
    if view == "square":
        return Scored(frame.name, image, image, truth, valid, frame.intrinsics is not None)
    height, width = truth.shape
    shown = crop_resize_image(image, Window(0, 0, height, width), resolution)
    return Scored(frame.name, shown, image, truth, valid, frame.intrinsics is not None)


def placed(pred: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """Returns a predicted map f32 [r r] at (h, w) pixels, bilinear: a prediction is smooth where truth has holes."""
    if pred.shape == size:
        return pred
    return np.asarray(
        Image.fromarray(pred.astype(np.float32)).resize(
            (size[1], size[0]), Image.Resampling.BILINEAR
        )
    )


def _straight(size: tuple[int, int]) -> np.ndarray:
    """A camera whose axis passes through the middle of (h, w) square pixels; its focal length changes nothing then."""
    return np.array([[1, 0, 0.5], [0, size[1] / size[0], 0.5], [0, 0, 1]], np.float32)
