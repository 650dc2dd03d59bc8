"""What a run will cost before it starts: the compiled program read, and a plan made of it."""
