"""Use of a trained network: photographs to depth at their own size, depth to images, captions."""
