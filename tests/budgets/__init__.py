"""Budgets of the hot path: what is counted per MiB, not how long it takes."""
