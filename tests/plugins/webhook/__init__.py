"""Tests of the webhook plugin (L11)."""
