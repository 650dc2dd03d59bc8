"""Modality Forcing in JAX: one diffusion transformer over images and depth, a noise level per modality (arXiv 2606.13676)."""

__version__ = "0.1.0"
