"""Addresses, listening sockets, TLS, and giving up root."""
