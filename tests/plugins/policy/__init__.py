"""Tests of the policy plugin (L11)."""
