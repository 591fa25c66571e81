"""Tests of the compiled core on a virtual network: no sockets, no clock, seeded randomness."""
