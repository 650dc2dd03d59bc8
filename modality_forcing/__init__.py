"""Modality Forcing in JAX: one diffusion transformer over images and depth (arXiv 2606.13676)."""

__version__ = "0.2.0.dev0"
