"""The rays' entry into solids, exact: closed-form intersections for many scenes at once."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np

from modality_forcing.synthetic.scene import FLAT, ROUND, TINY, Scene

_KINDS = (*(kind for kind in ROUND if kind != "cone"), "cone", "box", "wall", "pyramid", "prism")
_RANK = {kind: rank for rank, kind in enumerate(_KINDS)}
_ENDS = (len(ROUND), len(ROUND) + 2, len(_KINDS))  # ranks that end a group of one routine
_GROUP = {kind: sum(_RANK[kind] >= end for end in _ENDS) for kind in _KINDS}


class Solids:
    """The objects of scenes as arrays, sorted by the three intersection routines, then by scene.

    Attributes:
      index: of the object in its scene that fills each slot, i64 [slots scenes]; -1 if none does.
    """

    def __init__(self, scenes: Sequence[Scene]):
        order = sorted(
            (_GROUP[obj.kind], number, _RANK[obj.kind], index)
            for number, scene in enumerate(scenes)
            for index, obj in enumerate(scene.objects)
        )
        slots = max((len(scene.objects) for scene in scenes), default=0)
        self.index = np.full((slots, len(scenes)), -1)
        self._slot, self._scene = [], [number for _, number, _, _ in order]
        # Per group, the runs of solids of one scene: (scene, start, stop).
        self._groups: list[list[tuple[int, int, int]]] = [[] for _ in _ENDS]
        filled = [0] * len(scenes)
        for at, (group, number, _, index) in enumerate(order):
            self.index[filled[number], number] = index
            self._slot.append(filled[number])
            filled[number] += 1
            runs = self._groups[group]
            start = runs.pop()[1] if runs and runs[-1][0] == number else at
            runs.append((number, start, at + 1))
        objects = [scenes[number].objects[index] for _, number, _, index in order]
        x, y, z = ([obj.axes[i] for obj in objects] for i in range(3))
        parts = (x, y, z, [obj.half for obj in objects], [obj.position for obj in objects])
        rows = np.array(parts, np.float64).reshape(5, -1, 3)
        self._center = rows[4]
        # World to canonical: the rows are an object's own axes over its half extents.
        self._to_local = rows[:3].transpose(1, 0, 2) / rows[3][:, :, None]
        forms = [ROUND.get(obj.kind) or FLAT[obj.kind] for obj in objects]
        self._form = np.array(forms, np.float32).reshape(-1, 5)

    def entries(self, origins: np.ndarray, rays: np.ndarray) -> np.ndarray:
        """Returns t > 0 at which rays origin + t·ray enter the solid of each slot, or inf.

        origins: f64 [scenes 3]; rays: f32 [3 scenes n]; returns f32 [slots scenes n].
        """
        out = np.full((len(self.index), *rays.shape[1:]), np.inf, np.float32)
        away = origins[self._scene] - self._center
        local = np.einsum("kij,kj->ki", self._to_local, away)
        for runs, intersect in zip(self._groups, _ROUTINES, strict=True):
            if runs:
                group = slice(runs[0][1], runs[-1][2])
                project = _Projection(rays, runs)
                near, far = intersect(
                    self._to_local[group], local[group], self._form[group], project
                )
                hit = near < far
                hit &= near > 0
                np.copyto(near, np.inf, where=np.logical_not(hit, out=hit))
                out[self._slot[group], self._scene[group]] = near
        return out


class _Projection:
    """The products of matrices [k m 3], one a solid, and the rays of its scene: f32 [m k n].

    Each product has the same shape however many scenes there are, and thus the same rounding.
    """

    def __init__(self, rays: np.ndarray, runs: Sequence[tuple[int, int, int]]):
        self._rays, self._runs = rays, runs

    def __call__(self, matrices: np.ndarray) -> np.ndarray:
        first = self._runs[0][1]
        size = (matrices.shape[1], len(matrices), self._rays.shape[2])
        out = np.empty(size, np.float32)
        of_solids, matrices = out.transpose(1, 0, 2), matrices.astype(np.float32, order="C")
        for scene, start, stop in self._runs:
            run = slice(start - first, stop - first)
            np.matmul(matrices[run], self._rays[:, scene], out=of_solids[run])
        return out


# Each takes matrix [k 3 3], origin [k 3], form [k 5] and the projection of the rays to the
# t f32 [k n] at which rays enter and leave.
_Interval = tuple[np.ndarray, np.ndarray]
_Project = Callable[[np.ndarray], np.ndarray]


def _intersect_round(
    matrix: np.ndarray, origin: np.ndarray, form: np.ndarray, project: _Project
) -> _Interval:
    a, b, c, low, high = form.astype(np.float64).T
    x, y, z = origin.T
    slope = c * z + b / 2
    # The half-linear term of the quadratic is linear in the ray: one product gives it and the rays.
    half = x[:, None] * matrix[:, 0] + y[:, None] * matrix[:, 1] - slope[:, None] * matrix[:, 2]
    dx, dy, dz, linear = project(np.concatenate((matrix, half[:, None]), axis=1))
    constant = (x * x + y * y - a - b * z - c * z * z).astype(np.float32)[:, None]
    dz += TINY
    inverse = np.reciprocal(dz)
    dz *= dz
    dz *= form[:, 2:3]
    dx *= dx
    dy *= dy
    square = dx
    square += dy
    square -= dz
    square += TINY
    root = np.multiply(linear, linear, out=dy)
    root -= np.multiply(square, constant, out=dz)
    miss = root <= 0
    np.sqrt(np.maximum(root, 0, out=root), out=root)
    scale = np.reciprocal(square)
    near = np.negative(linear, out=linear)
    far = near + root
    near -= root
    near *= scale
    far *= scale
    cone = np.flatnonzero(c > 0)
    if len(cone):
        # A ray steeper than the cone meets both nappes: inside is beyond the roots, towards the
        # lower.
        steep, down = square[cone] < 0, inverse[cone] < 0
        first, last = np.minimum(near[cone], far[cone]), np.maximum(near[cone], far[cone])
        near[cone] = np.where(steep, np.where(down, last, -np.inf), first)
        far[cone] = np.where(steep, np.where(down, np.inf, first), last)
    to_low = inverse * (low - z).astype(np.float32)[:, None]
    to_high = np.multiply(inverse, (high - z).astype(np.float32)[:, None], out=inverse)
    np.maximum(near, np.minimum(to_low, to_high, out=dy), out=near)
    np.minimum(far, np.maximum(to_low, to_high, out=dz), out=far)
    np.copyto(far, -np.inf, where=miss)
    return near, far


def _intersect_boxes(
    matrix: np.ndarray, origin: np.ndarray, form: np.ndarray, project: _Project
) -> _Interval:
    inverse = project(matrix)
    inverse += TINY
    np.reciprocal(inverse, out=inverse)
    middle = inverse * -origin.T.astype(np.float32)[:, :, None]
    reach = np.abs(inverse, out=inverse)
    near = np.maximum.reduce(middle - reach, axis=0)
    middle += reach
    return near, np.minimum.reduce(middle, axis=0)


def _intersect_tents(
    matrix: np.ndarray, origin: np.ndarray, form: np.ndarray, project: _Project
) -> _Interval:
    planes, limits = _tent_planes(form)
    speed = project(np.einsum("kpi,kij->kpj", planes, matrix))
    slack = (limits - np.einsum("kpi,ki->kp", planes, origin)).T.astype(np.float32)[:, :, None]
    speed += TINY
    t = slack / speed
    enters = speed < 0
    near = np.maximum.reduce(np.where(enters, t, -np.inf), axis=0)
    return near, np.minimum.reduce(np.where(enters, np.inf, t), axis=0)


def _tent_planes(form: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Returns normals [k 5 3] and limits [k 5] of the planes around pyramids and prisms."""
    kx, ax, ky, ay, _ = form.astype(np.float64).T
    one, nil = np.ones_like(kx), np.zeros_like(kx)
    planes = np.array(
        [[one, nil, kx], [-one, nil, kx], [nil, one, ky], [nil, -one, ky], [nil, nil, -one]]
    )
    return planes.transpose(2, 0, 1), np.array([ax, ax, ay, ay, one]).T


_ROUTINES = (_intersect_round, _intersect_boxes, _intersect_tents)
