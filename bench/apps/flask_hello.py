"""Hello world in Flask; /shop/… takes two numbers of the path."""

from flask import Flask

wsgi = Flask(__name__)


@wsgi.get("/")
def index():
    return "Hello, world!"


@wsgi.get("/shop/<int:shop>/items/<int:item>")
def item(shop, item):
    return "Hello, world!"
