"""Frozen encoders run once over prepared records: latents and text states kept for training."""
