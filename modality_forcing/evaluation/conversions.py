"""Scores of networks of three or more modalities: each from every subset of the others.

Image to depth and depth to image are scored in `heldout`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from itertools import chain, combinations
from typing import Protocol, runtime_checkable

import numpy as np

from modality_forcing import tasks
from modality_forcing.data import normals
from modality_forcing.evaluation.depth_metrics import relative_means, score
from modality_forcing.evaluation.normal_metrics import (
    angular_error,
    constant_prediction,
    row_mean_prediction,
    summarize,
)
from modality_forcing.modalities.base import Modality
from modality_forcing.modalities.depth import Depth
from modality_forcing.modalities.image import Image
from modality_forcing.modalities.normals import Normals

Arrays = Mapping[str, np.ndarray]
Metrics = dict[str, float]
Generate = Callable[[str, Arrays], Arrays]  # a task and its condition to all that it generates


@runtime_checkable
class Examples(Protocol):
    """What is compared with: `heldout.HeldOutData` fits."""

    depth: np.ndarray
    valid: np.ndarray
    intrinsics: np.ndarray | None

    def inputs(self) -> dict[str, np.ndarray]: ...


def _score_depth(pred: np.ndarray, data: Examples) -> Metrics:
    return relative_means(score(pred, data.depth, data.valid))


def _score_normals(pred: np.ndarray, data: Examples) -> Metrics:
    return summarize(angular_error(pred, data.inputs()["normals"]))


# The metric of each kind that has one.
SCORES = {Depth: _score_depth, Normals: _score_normals}


def evaluate(
    modalities: Mapping[str, Modality],
    data: Examples,
    generate: Generate,
    train: Callable[[], Examples],
) -> dict[str, Metrics]:
    """Returns the scores of `conversions` by task, and what normals are compared with.

    train: the training records of a baseline, only called with a modality of normals.
    """
    found = {}
    for task, target in conversions(modalities).items():
        cond = tasks.parse(task, list(modalities)).given
        made = generate(task, {k: data.inputs()[k] for n in cond for k in modalities[n].inputs})
        found[task] = SCORES[type(modalities[target])](made[target], data)
    names = {type(m): name for name, m in modalities.items()}
    if found and names.keys() >= {Image, Depth, Normals}:
        found |= normal_baselines(data, train())
        task = tasks.conversion((names[Image],), (names[Depth], names[Normals]))
        made = generate(task, {k: data.inputs()[k] for k in modalities[names[Image]].inputs})
        found["consistency"] = consistency(made[names[Depth]], made[names[Normals]], data)
    return found


def conversions(modalities: Mapping[str, Modality]) -> dict[str, str]:
    """Returns the tasks of `tasks.parse` that make one modality with a metric, and which it is.

    There is one for each non-empty set of other modalities. None of two modalities, and none where
    two share a first letter.
    """
    names = list(modalities)
    if len(names) < 3 or len({name[0] for name in names}) < len(names):
        return {}
    found = {}
    for target in (name for name in names if type(modalities[name]) in SCORES):
        others = [name for name in names if name != target]
        sizes = range(1, len(others) + 1)
        for cond in chain.from_iterable(combinations(others, n) for n in sizes):
            found[tasks.conversion(cond, (target,))] = target
    # Image to depth and depth to image are scored in `heldout`.
    return {task: target for task, target in found.items() if task not in tasks.TASKS}


def normal_baselines(data: Examples, train: Examples) -> dict[str, Metrics]:
    """Scores normals that ignore the image: each image's mean direction, and each row's."""
    target = data.inputs()["normals"]
    profile = np.broadcast_to(row_mean_prediction(train.inputs()["normals"]), target.shape)
    return {
        "normals_constant": _score_normals(constant_prediction(target), data),
        "normals_row_mean": _score_normals(profile, data),
    }


def consistency(depth: np.ndarray, made: np.ndarray, data: Examples) -> Metrics:
    """Compares generated normals [n h w 3] with those of the depth [n h w] generated beside them.

    `mean_deg` and so on are of the angle between the two, in the pixels where planes fit the true
    depth (`data.normals`): a share `coverage` of all. There, `normals_mean_deg` and
    `depth_mean_deg` are the errors of each: a modality of its own is worth something if it is the
    smaller. Camera intrinsics that are not known leave nothing to compare.
    """
    assert data.intrinsics is not None
    rows = zip(depth, data.depth, data.valid, data.intrinsics, strict=True)
    pairs = [
        (normals.from_depth(z, valid, k, max_error=90), normals.from_depth(true, valid, k))
        for z, true, valid, k in rows
    ]
    of_depth, of_truth = (np.stack(each) for each in zip(*pairs, strict=True))
    smooth = np.any(of_truth, axis=-1, keepdims=True)
    of_depth = np.where(smooth, of_depth, 0.0)
    target = np.where(smooth, data.inputs()["normals"], 0.0)
    errors = angular_error(made, of_depth)
    return {
        **summarize(errors),
        "coverage": float((~np.isnan(errors)).mean()),
        "normals_mean_deg": summarize(angular_error(made, target))["mean_deg"],
        "depth_mean_deg": summarize(angular_error(of_depth, target))["mean_deg"],
    }
