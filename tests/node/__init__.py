"""Tests of the node room: async shells on a fake core, and whole nodes over loopback."""
