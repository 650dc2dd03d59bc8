"""What is kept on disk: shards of prepared records, caches of encoded ones, and their manifests."""
