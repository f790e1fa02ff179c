"""Servo: an application server for Python web apps (WSGI and ASGI)."""

__version__ = "0.1.0"
