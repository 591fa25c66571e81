"""Tests of pilot: unit, property, simulation and interoperation suites (all layers)."""
