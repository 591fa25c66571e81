"""Tests of the sans-IO control plane."""
