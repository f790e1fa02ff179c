"""The control socket, through which tools such as `servoctl` talk to a running server.

This package doesn't know the arbiter, which owns the server's end.
"""
