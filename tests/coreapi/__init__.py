"""Tests of the plugin contract (L10)."""
