"""HTTP/1.1 without I/O: bytes to events and back."""
