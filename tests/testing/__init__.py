"""Tests of `pilot.testing`: the simulator itself has to be right before what it says counts."""
