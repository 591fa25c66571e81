"""Interoperation with the official daemon 1.18.0, run in a network namespace that has only loopback (L2-L9)."""
