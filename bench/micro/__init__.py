"""Single operations beside their peers, for pytest-benchmark: `pytest bench/micro --benchmark-only` (bench)."""
