"""`python -m pilot`: the `pilot` command, where its script is not on the path (L12)."""

from pilot.cli import main

main()
