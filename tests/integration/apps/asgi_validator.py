"""An ASGI middleware that checks the server (ASGI 3, HTTP 2.5, lifespan 2.0).

It prints each fault as "ASGI violation: …", and a test searches the log for this text. $VALIDATED
names the application, as "path/to/file.py:attribute".
"""

import importlib.util
import os
import sys


def load(name):
    path, _, attribute = name.rpartition(":")
    spec = importlib.util.spec_from_file_location("validated_app", path)
    module = importlib.util.module_from_spec(spec)
    sys.modules["validated_app"] = module
    spec.loader.exec_module(module)
    return getattr(module, attribute)


wrapped = load(os.environ["VALIDATED"])


def check(condition, what, value=None):
    if not condition:
        print(f"ASGI violation: {what}: {value!r}", flush=True)
        raise AssertionError(what)


async def app(scope, receive, send):
    check(type(scope) is dict, "scope is a dict", scope)
    check(type(scope["type"]) is str, "type is a str", scope["type"])
    check_asgi(scope["asgi"])
    if scope["type"] == "lifespan":
        check(set(scope) <= {"type", "asgi", "state"}, "keys of a lifespan scope", set(scope))
        check(type(scope["state"]) is dict, "state is a dict", scope["state"])
        await wrapped(scope, Lifespan(receive), send)
        return
    check(scope["type"] == "http", "type is known", scope["type"])
    check_http(scope)
    await wrapped(scope, Receive(receive), Send(send))


def check_asgi(versions):
    check(type(versions) is dict, "asgi is a dict", versions)
    check(versions["version"] in ("2.0", "3.0"), "asgi version", versions)
    check(
        versions["spec_version"] in ("1.0", "2.0", "2.1", "2.2", "2.3", "2.4", "2.5"),
        "spec",
        versions,
    )


TYPES = {
    "method": str,
    "http_version": str,
    "scheme": str,
    "path": str,
    "raw_path": bytes,
    "query_string": bytes,
    "root_path": str,
    "headers": list,
    "extensions": dict,
    "state": dict,
    "asgi": dict,
    "type": str,
}


def check_http(scope):
    for key, kind in TYPES.items():
        if key == "state" and key not in scope:
            continue  # of an application without a lifespan
        check(key in scope, "scope has a key", key)
        check(type(scope[key]) is kind, f"{key} is a {kind.__name__}", scope[key])
    check(set(scope) <= {*TYPES, "client", "server"}, "no other keys", set(scope))
    check(scope["method"] == scope["method"].upper(), "method in upper case", scope["method"])
    check(scope["http_version"] in ("1.0", "1.1", "2"), "http_version", scope["http_version"])
    check(scope["scheme"] in ("http", "https"), "scheme", scope["scheme"])
    check(scope["path"].startswith("/") or scope["path"] == "*", "path", scope["path"])
    check(b"?" not in scope["raw_path"], "raw_path without query", scope["raw_path"])
    check(not scope["query_string"].startswith(b"?"), "query without ?", scope["query_string"])
    check(scope["path"].startswith(scope["root_path"]), "path begins with root_path", scope["path"])
    for pair in scope["headers"]:
        check(len(pair) == 2, "headers are pairs", pair)
        name, value = pair
        check(type(name) is bytes and type(value) is bytes, "headers are bytes", pair)
        check(name == name.lower(), "header names are in lower case", name)
        check(value == value.strip(b" \t\r\n"), "header values are stripped", value)
    for key in ("client", "server"):
        if scope[key] is not None:
            host, port = scope[key]
            check(type(host) is str, f"{key} host is a str", host)
            check(type(port) is int or (port is None and key == "server"), f"{key} port", port)
    for name, value in scope["extensions"].items():
        check(type(name) is str and type(value) is dict, "extensions are dicts", (name, value))


class Lifespan:
    def __init__(self, receive):
        self.receive = receive
        self.expected = ["lifespan.startup", "lifespan.shutdown"]

    async def __call__(self):
        message = await self.receive()
        check(message == {"type": self.expected.pop(0)}, "lifespan events", message)
        return message


class Receive:
    """Body parts, then disconnects and nothing else."""

    def __init__(self, receive):
        self.receive = receive
        self.whole = self.gone = False

    async def __call__(self):
        message = await self.receive()
        check(type(message) is dict, "an event is a dict", message)
        if message["type"] == "http.request":
            check(not self.whole, "no body after its end", message)
            check(not self.gone, "no body after a disconnect", message)
            check(type(message["body"]) is bytes, "body is bytes", message)
            check(type(message["more_body"]) is bool, "more_body is a bool", message)
            check(set(message) == {"type", "body", "more_body"}, "keys of http.request", message)
            check(message["body"] or not message["more_body"], "no empty parts", message)
            self.whole = not message["more_body"]
        else:
            check(message == {"type": "http.disconnect"}, "http.disconnect", message)
            self.gone = True
        return message


class Send:
    """`send` gives None, or raises an OSError where the client is gone (HTTP 2.4)."""

    def __init__(self, send):
        self.send = send

    async def __call__(self, message):
        result = await self.send(message)
        check(result is None, "send gives None", result)
