"""Unusual behaviour that PEP 3333 allows an application, and some that it forbids."""

import io
import sys

OK = "200 OK"
TEXT = ("Content-Type", "text/plain")


def app(environ, start_response):
    return APPS[environ["PATH_INFO"]](environ, start_response)


def write(environ, start_response):
    write = start_response(OK, [TEXT])
    write(b"a")
    write(b"")
    write(b"b")
    return []


def write_and_iterate(environ, start_response):
    start_response(OK, [TEXT])(b"a")
    return [b"", b"b"]


def empty_parts(environ, start_response):
    start_response(OK, [TEXT])
    return (block for block in [b"", b"a", b"", b"b", b""])


def nothing(environ, start_response):
    start_response(OK, [TEXT])
    return iter([])


def late_start(environ, start_response):
    start_response(OK, [TEXT])
    yield b"a"
    yield b"b"


def late_write(environ, start_response):
    write = start_response(OK, [TEXT])

    def parts():
        yield b"a"
        write(b"b")
        yield b"c"

    return parts()


def changed_mind(environ, start_response):
    start_response(OK, [TEXT, ("X-Old", "1")])
    try:
        raise ValueError("before anything was sent")
    except ValueError:
        start_response("503 Sorry", [TEXT], sys.exc_info())
    return [b"sorry"]


def changed_mind_too_late(environ, start_response):
    start_response(OK, [TEXT])(b"begun")
    try:
        raise ValueError("after something was sent")
    except ValueError:
        start_response("503 Sorry", [TEXT], sys.exc_info())
    return [b"never"]


def twice(environ, start_response):
    start_response(OK, [TEXT])
    start_response(OK, [TEXT])
    return [b"never"]


def no_content(environ, start_response):
    start_response("204 No Content", [])
    return []


def no_content_after_all(environ, start_response):
    start_response("204 No Content", [])
    return [b"none of this may be sent"]


def not_modified(environ, start_response):
    start_response("304 Not Modified", [("ETag", '"a"')])
    return []


def short(environ, start_response):
    start_response(OK, [TEXT, ("Content-Length", "10")])
    return (block for block in [b"short"])


def long(environ, start_response):
    start_response(OK, [TEXT, ("Content-Length", "4")])
    return iter([b"much too long"])


def long_later(environ, start_response):
    start_response(OK, [TEXT, ("Content-Length", "4")])
    return (block for block in [b"ok", b"much too long"])


def long_list(environ, start_response):
    start_response(OK, [TEXT, ("Content-Length", "4")])
    return [b"much too long"]


class Closing:
    """Says in the log that it was closed."""

    def __init__(self, parts, name):
        self.parts = iter(parts)
        self.name = name

    def __iter__(self):
        return self

    def __next__(self):
        return next(self.parts)

    def close(self):
        print(f"{self.name} was closed", flush=True)


def closed(environ, start_response):
    start_response(OK, [TEXT])
    return Closing([b"a", b"b"], "whole body")


def broken():
    yield b"a"
    raise RuntimeError("in the middle, on purpose")


def closed_after_error(environ, start_response):
    start_response(OK, [TEXT])
    return Closing(broken(), "broken body")


def close_raises(environ, start_response):
    start_response(OK, [TEXT, ("Content-Length", "2")])
    body = Closing([b"ab"], "")
    body.close = None

    class Raising(Closing):
        def close(self):
            raise RuntimeError("in close, on purpose")

    return Raising([b"ab"], "")


def file(environ, start_response):
    start_response(OK, [TEXT])
    opened = open(__file__, "rb")  # noqa: SIM115 - the server closes it
    opened.seek(3)
    return environ["wsgi.file_wrapper"](opened, 100)


def file_in_memory(environ, start_response):
    start_response(OK, [TEXT])
    return environ["wsgi.file_wrapper"](io.BytesIO(b"in memory"), 2)


def part_of_file(environ, start_response):
    start_response(OK, [TEXT, ("Content-Length", "3")])
    return environ["wsgi.file_wrapper"](open(__file__, "rb"))


def odd_status(environ, start_response):
    start_response("299 Quite Fine, Thanks", [TEXT])
    return (b"a", b"b")


def hop_by_hop(environ, start_response):
    start_response(OK, [TEXT, ("Connection", "x-a"), ("Keep-Alive", "9"), ("Upgrade", "x")])
    return [b"ab"]


def injected(environ, start_response):
    start_response(OK, [TEXT, ("X-A", "a\r\nX-Injected: 1")])
    return [b"never"]


def text(environ, start_response):
    start_response(OK, [TEXT])
    return ["not bytes"]


def no_start(environ, start_response):
    return [b"never"]


def none(environ, start_response):
    start_response(OK, [TEXT])


def exits(environ, start_response):
    sys.exit("on purpose")


def lines(environ, start_response):
    stream = environ["wsgi.input"]
    got = [stream.readline(), stream.readline(3), stream.read(2), *stream.readlines()]
    start_response(OK, [TEXT])
    return [repr(got).encode(), repr([stream.read(1), stream.readline(), *stream]).encode()]


def hints(environ, start_response):
    environ["wsgi.early_hints"]([("Link", "</a.css>; rel=preload")])
    start_response(OK, [TEXT])
    return [b"ab"]


APPS = {
    f"/{name.replace('_', '-')}": value
    for name, value in list(globals().items())
    if callable(value) and name not in ("app", "broken", "Closing")
}
