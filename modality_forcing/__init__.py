"""Modality Forcing in JAX: one diffusion transformer over images and depth (arXiv 2606.13676).

`Pipeline` uses a trained network from Python (`inference.pipeline`).
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from modality_forcing.inference.pipeline import Pipeline as Pipeline

__version__ = "0.2.0.dev0"


def __getattr__(name: str) -> object:
    """Imports the pipeline, and jax with it, when it is first asked for."""
    if name == "Pipeline":
        from modality_forcing.inference.pipeline import Pipeline

        return Pipeline
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
