"""`python -m pilot.cli`: the `pilot` command without its script (L12)."""

from pilot.cli import main

main()
