"""Frozen encoders of captions and images, and the tokenizers and interfaces they share."""
