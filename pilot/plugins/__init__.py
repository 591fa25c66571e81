"""The plugins of a node: each in a package of its own, written against `pilot.coreapi` alone (plugins, L11)."""
