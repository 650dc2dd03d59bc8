"""Evaluation: what the numbers in a report are computed with (depth metrics and their alignment, colour words)."""
