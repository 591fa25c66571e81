"""Tests of the data exchange: frames, stores, service and client."""
