"""Loading applications, and calling them by WSGI or ASGI for the requests of a connection."""
