"""Tests of the registry client (L8), against a scripted registry and against our own rendezvous server."""
