"""What a run costs before it starts: the real step compiled for a TPU slice, and its program read."""
