"""Fuzz targets for everything of the compiled core that parses network bytes: `python -m tests.fuzz NAME --runs N`."""
