"""Modalities: what can be generated or given. One file each; the rest of the package never asks which one it has."""
