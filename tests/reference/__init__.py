"""The wire in plain Python: slow, obvious, and the peer that compiled codecs are compared with (L2-L7)."""
