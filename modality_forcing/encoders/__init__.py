"""Captions and pictures to the numbers a model conditions on or denoises, behind interfaces frozen encoders share."""
