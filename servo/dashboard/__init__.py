"""The dashboard: a web page for operators, served by a process of its own.

`process` runs the process. `app` is the ASGI application; `access` decides who may use it.
`server_link` asks the arbiter for figures and events, `samples` turns them into samples, and
`history` keeps the samples of the last ten minutes.
"""
