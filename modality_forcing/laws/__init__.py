"""Scaling laws: their forms, the fit to a table of runs, and the compute-optimal allocation."""
