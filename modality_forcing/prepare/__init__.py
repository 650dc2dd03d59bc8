"""`mforce prepare` and `mforce inspect`: a data set read once into shards that training reads, and a look into them."""
