"""The WSGI test app, wrapped in the standard library's validator of PEP 3333."""

import sys
from pathlib import Path
from wsgiref.validate import validator

sys.path.insert(0, str(Path(__file__).parent))

import wsgi_app

# `validator` allows `read` only with a size, and demands that the iterator is closed.
app = validator(wsgi_app.app)
