"""Tests of the rendezvous server and of the codecs it shares with the node (protocol and rendezvous rooms)."""
