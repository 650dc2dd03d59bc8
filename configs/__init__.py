"""The configs that come with the package: one file per run, found by name (`--config=demo`)."""
