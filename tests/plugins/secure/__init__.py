"""Tests of the secure channel (L11)."""
