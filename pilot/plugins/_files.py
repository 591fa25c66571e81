"""The names that `dataexchange/received.py` takes from `pilot._files` (plugins, L11)."""

from pilot._files import private_directory, sync_directory

__all__ = ["private_directory", "sync_directory"]
