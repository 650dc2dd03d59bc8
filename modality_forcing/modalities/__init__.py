"""What the model generates or is conditioned on: one file a kind, found by its name."""
