"""What the readers of data sets share: file formats, cameras, LiDAR, COLMAP models."""
