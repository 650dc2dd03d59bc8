"""Scaling studies: sweeps as expressions over configs, their runs, scores, prices and reports."""
