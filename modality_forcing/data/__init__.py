"""Sources of pictures and depth, on the host: records, the procedural world, sparse patterns, the training feed."""
