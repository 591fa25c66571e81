"""Tests of the plugins (L11)."""
