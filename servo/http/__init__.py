"""HTTP without I/O: bytes to events and back. Nothing here opens a socket or reads a clock.

README.md explains how a message is framed and how the modules work together.
"""
