"""Scores: of a checkpoint on its own held-out records and on benchmarks, and of arrays that anyone made."""
