"""Benchmarks on disk: which frames a set consists of, and each of them as picture, true depth, mask and intrinsics."""
