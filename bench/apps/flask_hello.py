"""Hello world in Flask."""

from flask import Flask

wsgi = Flask(__name__)


@wsgi.get("/")
def index():
    return "Hello, world!"
