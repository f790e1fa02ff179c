"""wsgiref's validator around the application that $VALIDATED names, "path/to/file.py:attribute"."""

import os
import sys
from pathlib import Path
from wsgiref.validate import validator

sys.path.insert(0, str(Path(__file__).parent))


def load(name):
    import importlib.util

    path, _, attribute = name.rpartition(":")
    spec = importlib.util.spec_from_file_location("validated_app", path)
    module = importlib.util.module_from_spec(spec)
    sys.modules["validated_app"] = module
    spec.loader.exec_module(module)
    return getattr(module, attribute)


wrapped = load(os.environ["VALIDATED"])


class Input:
    """The validator wants a size with each `read`, which frameworks leave out."""

    def __init__(self, stream):
        self.stream = stream
        self.readline = stream.readline
        self.readlines = stream.readlines

    def read(self, size=-1):
        if size is not None and size >= 0:
            return self.stream.read(size)
        return b"".join(iter(lambda: self.stream.read(65536), b""))

    def __iter__(self):
        return iter(self.stream)


def lenient(environ, start_response):
    environ["wsgi.input"] = Input(environ["wsgi.input"])
    return wrapped(environ, start_response)


app = validator(lenient)
