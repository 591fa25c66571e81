"""Benchmarks of `pilot` beside its peers: `e2e.py` with real sockets, `micro/` for single operations (bench)."""
