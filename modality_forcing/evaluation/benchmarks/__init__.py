"""Public depth benchmarks: registry, layouts on disk, and opening them."""
