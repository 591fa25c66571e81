"""The compiled ground floor (L2-L7): addresses, packets, AEAD, streams, timers, and `udp`, the only one with I/O."""
