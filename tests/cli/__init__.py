"""Tests of the command: file transfer, output and exit codes, and every command as a process of its own."""
