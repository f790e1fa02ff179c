"""Accepting connections, and deciding whether to keep them open."""
