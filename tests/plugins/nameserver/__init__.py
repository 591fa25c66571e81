"""Tests of the name server (L11)."""
