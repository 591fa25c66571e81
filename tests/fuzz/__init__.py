"""Fuzz targets for everything that parses network bytes: `python -m tests.fuzz NAME --runs N`."""
