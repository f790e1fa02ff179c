"""HTTP without I/O: bytes to events and back. Nothing here opens a socket or reads a clock."""
