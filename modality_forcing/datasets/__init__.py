"""The data sets of the field, each in its authors' own layout, opened as sources of records: one module a set."""
