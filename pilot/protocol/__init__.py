"""Codecs both ends share: registry frames and signatures, names, beacon datagrams (protocol room, L8 wire formats)."""
