"""HTTP/2 without I/O: frames to events and back."""
