"""Encrypted and signed messages, and the keys for them (protocol sections 2 and 7)."""
