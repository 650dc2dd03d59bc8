"""Distances of two sets of images by their features, FID, KID and CMMD, and the CLIP score."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from jaxtyping import Float

from modality_forcing.errors import UserError

Features = Float[np.ndarray, "_ d"]

SUBSETS = 100  # of KID, as in the public tools
SUBSET_SIZE = 1000
SEED = 2020  # of its subsets, torch-fidelity's
_SIGMA, _SCALE = 10.0, 1000.0  # of CMMD
_ROWS = 1024  # of a kernel matrix that are in memory at a time


def frechet_distance(a: Features, b: Features) -> float:
    """Returns the squared Fréchet distance of Gaussians fitted to features (FID; Heusel et al.).

    |m_a - m_b|^2 + tr(C_a + C_b - 2 (C_a C_b)^(1/2)), with covariances over n - 1. Biased: it falls
    with the number of images, so only sets of equal sizes compare.

    Raises UserError for fewer than two images.
    """
    _check_count("FID", 2, a, b)
    a, b = a.astype(np.float64), b.astype(np.float64)
    cov_a, cov_b = (np.atleast_2d(np.cov(x, rowvar=False)) for x in (a, b))
    # The eigenvalues of C_a C_b are those of R C_b R with R = C_a^(1/2), which is symmetric.
    values, vectors = np.linalg.eigh(cov_a)
    root = (vectors * np.sqrt(values.clip(min=0))) @ vectors.T
    product = np.linalg.eigvalsh(root @ cov_b @ root)
    shift = ((a.mean(0) - b.mean(0)) ** 2).sum()
    total = shift + np.trace(cov_a) + np.trace(cov_b) - 2 * np.sqrt(product.clip(min=0)).sum()
    return float(total)


def kernel_distance(
    a: Features, b: Features, *, subset_size: int = SUBSET_SIZE
) -> tuple[float, float]:
    """Returns mean and standard deviation of KID over random subsets (Binkowski et al.).

    The squared maximum mean discrepancy under the kernel (x·y / d + 1)^3, unbiased. Subsets are
    those of torch-fidelity. Raises UserError for fewer images than a subset has.
    """
    check_subset_size(subset_size, min(len(a), len(b)))
    rng = np.random.RandomState(SEED)
    found = []
    for _ in range(SUBSETS):
        x = a[rng.choice(len(a), subset_size, replace=False)].astype(np.float64)
        y = b[rng.choice(len(b), subset_size, replace=False)].astype(np.float64)
        within = sum(k.sum() - np.trace(k) for k in (_cubic(x, x), _cubic(y, y)))
        n = subset_size
        found.append(within / (n * (n - 1)) - 2 * _cubic(x, y).mean())
    return float(np.mean(found)), float(np.std(found))


def check_subset_size(subset_size: int, fewest: int) -> None:
    """Raises UserError for subsets of KID that are larger than a set, or too small to compare."""
    if not 2 <= subset_size <= fewest:
        what = f"KID takes subsets of {subset_size} images, a set has {fewest}"
        raise UserError(what, hint="give more images, or another --kid-subset of at least 2")


def cmmd(a: Features, b: Features) -> float:
    """Returns CMMD of CLIP features (Jayasumana et al., arXiv 2401.09603).

    1000 times the squared maximum mean discrepancy of unit vectors under a Gaussian kernel of width
    10, with the diagonal, as in the public code.
    """
    _check_count("CMMD", 1, a, b)
    a, b = (x / np.linalg.norm(x, axis=1, keepdims=True) for x in map(np.float64, (a, b)))
    return _SCALE * (_mean(_gaussian, a, a) + _mean(_gaussian, b, b) - 2 * _mean(_gaussian, a, b))


def clip_score(images: Features, texts: Features) -> float:
    """Returns the CLIP score of images for their captions (Hessel et al., arXiv 2104.08718).

    The mean of 100 max(0, cosine) of the features of each pair, as most tools scale it.
    """
    a, b = (x / np.linalg.norm(x, axis=1, keepdims=True) for x in map(np.float64, (images, texts)))
    return float(np.mean(100 * np.maximum(np.sum(a * b, axis=1), 0)))


def _cubic(x: Features, y: Features) -> np.ndarray:
    return (x @ y.T / x.shape[1] + 1.0) ** 3


def _gaussian(x: Features, y: Features) -> np.ndarray:
    squares = (x**2).sum(1)[:, None] + (y**2).sum(1)[None] - 2 * x @ y.T
    return np.exp(-squares / (2 * _SIGMA**2))


def _mean(kernel: Callable[[Features, Features], np.ndarray], x: Features, y: Features) -> float:
    sums = [kernel(x[i : i + _ROWS], y).sum() for i in range(0, len(x), _ROWS)]
    return float(np.sum(sums) / (len(x) * len(y)))


def _check_count(metric: str, least: int, a: Features, b: Features) -> None:
    if (fewest := min(len(a), len(b))) < least:
        what = f"{metric} needs at least {least} images of each set, one has {fewest}"
        raise UserError(what, hint="give more images")
