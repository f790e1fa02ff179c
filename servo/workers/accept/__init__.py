"""Accepting connections, and when to keep them."""
