"""Distances of sets of features: closed forms, the public tool's numbers, brute force."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from modality_forcing.errors import UserError
from modality_forcing.evaluation.image_distances import cmmd, frechet_distance, kernel_distance

RNG = np.random.default_rng(0)
A, B = RNG.normal(size=(30, 5)), RNG.normal(0.5, 2.0, (40, 5))
DATA = Path(__file__).parents[2] / "parity/data/image_distances.npz"


def whitened(x: np.ndarray) -> np.ndarray:
    """Features of mean 0 and covariance 1."""
    x = x - x.mean(0)
    return x @ np.linalg.inv(np.linalg.cholesky(np.cov(x, rowvar=False))).T


def test_frechet_distance_of_gaussians_in_closed_form():
    """Of N(0, I) and N(m, diag s^2) it is |m|^2 + sum (1 - s)^2, for any rotation of both."""
    m, s = np.array([1.0, 0, -2, 0.5, 0]), np.array([1.0, 2, 0.5, 3, 0])
    rotation = np.linalg.qr(RNG.normal(size=(5, 5)))[0]
    a, b = whitened(A) @ rotation, (whitened(B) * s + m) @ rotation
    assert frechet_distance(a, b) == pytest.approx((m**2).sum() + ((1 - s) ** 2).sum())
    assert frechet_distance(b, a) == pytest.approx(frechet_distance(a, b))
    assert frechet_distance(A, A) == pytest.approx(0, abs=1e-9)


def test_fewer_images_than_features_are_compared():
    a, b = A[:4, :].repeat(3, axis=1), B[:3, :].repeat(3, axis=1)
    assert frechet_distance(a, b) == pytest.approx(frechet_distance(b, a), rel=1e-6)


def test_numbers_of_the_public_tool():
    """data/image_distances.npz has features and what torch-fidelity makes of them."""
    stored = np.load(DATA)
    a, b, size = stored["a"], stored["b"], int(stored["kid_subset"])
    assert frechet_distance(a, b) == pytest.approx(float(stored["fid"]), rel=1e-6)
    # It adds in float32.
    expected = pytest.approx(stored["kid"].tolist(), rel=1e-4)
    assert kernel_distance(a, b, subset_size=size) == expected


def test_kernel_distance_is_unbiased():
    """Of two halves of one set its mean over subsets is 0, not above."""
    halves = RNG.normal(size=(2, 300, 5))
    mean, std = kernel_distance(*halves, subset_size=100)
    assert abs(mean) < 3 * std
    shifted, _ = kernel_distance(halves[0], halves[1] + 1, subset_size=100)
    assert shifted > 10 * std


def test_cmmd_is_the_mean_over_pairs(monkeypatch):
    monkeypatch.setattr("modality_forcing.evaluation.image_distances._ROWS", 7)
    a, b = (x / np.linalg.norm(x, axis=1, keepdims=True) for x in (A, B))

    def mean(x: np.ndarray, y: np.ndarray) -> float:
        return float(np.mean([np.exp(-((p - q) ** 2).sum() / 200) for p in x for q in y]))

    expected = 1000 * (mean(a, a) + mean(b, b) - 2 * mean(a, b))
    assert cmmd(A, B) == pytest.approx(expected, rel=1e-6)
    assert cmmd(3 * A, B) == pytest.approx(cmmd(A, B)) and cmmd(A, A) == pytest.approx(0, abs=1e-9)


def test_too_few_images_are_one_line():
    with pytest.raises(UserError, match="FID needs at least 2 images of each set, one has 1"):
        frechet_distance(A, B[:1])
    with pytest.raises(UserError, match="KID takes subsets of 1000 images, a set has 30; give"):
        kernel_distance(A, B)
    with pytest.raises(UserError, match="KID takes subsets of 1 images"):
        kernel_distance(A, B, subset_size=1)
