"""Flask's hello."""

from flask import Flask

wsgi = Flask(__name__)


@wsgi.get("/")
def index():
    return "Hello, world!"
