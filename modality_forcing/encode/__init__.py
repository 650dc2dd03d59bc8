"""`mforce encode`: caches what frozen encoders make of prepared records."""
