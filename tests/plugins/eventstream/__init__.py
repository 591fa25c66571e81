"""Tests of the event stream: frames, broker, service and client."""
