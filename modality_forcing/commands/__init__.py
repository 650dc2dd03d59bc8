"""The commands of mforce, one module each: its options, its examples and its main."""
