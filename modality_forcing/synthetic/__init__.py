"""The procedural world: rooms and open ground, rendered with exact depth from an index."""
