"""What hostile peers, networks and registries try, each with its test; README.md maps every clause to one."""
