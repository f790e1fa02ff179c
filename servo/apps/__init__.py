"""Loads applications, and calls them by WSGI or ASGI."""
