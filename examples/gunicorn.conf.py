"""A gunicorn configuration with hooks. Servo reads it unchanged.

servo -c examples/gunicorn.conf.py
"""

import os

wsgi_app = "examples/flask_app.py:app"
bind = os.environ.get("BIND", "127.0.0.1:8000")
workers = int(os.environ.get("WEB_CONCURRENCY", "2"))
worker_class = "gthread"
threads = 4
max_requests = 1000
max_requests_jitter = 100
accesslog = "-"


def when_ready(server):
    server.log.info("ready to serve")


def post_fork(server, worker):
    server.log.info("forked worker %s", worker.pid)


def worker_exit(server, worker):
    server.log.info("worker %s has ended", worker.pid)
