"""Depth metrics and protocols, benchmarks, held-out evaluation and reports."""
