"""Tests of the expression language of policies (L11)."""
