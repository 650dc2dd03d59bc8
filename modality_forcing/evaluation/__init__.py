"""Evaluation of depth: protocols, alignment, metrics, benchmarks, ensembles, and a checkpoint's held-out scores."""
