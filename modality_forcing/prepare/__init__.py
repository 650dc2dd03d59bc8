"""`mforce prepare`: converts a data set to shards, which training reads."""
