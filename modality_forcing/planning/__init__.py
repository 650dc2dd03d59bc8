"""The cost of a run before it starts, from the real step compiled for a TPU slice."""
