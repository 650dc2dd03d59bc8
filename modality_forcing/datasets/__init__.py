"""Readers of data sets in the layouts that their authors distribute, one module per data set."""
