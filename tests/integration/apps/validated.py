"""The WSGI test app under the standard library's own checker of both sides of the contract."""

import sys
from pathlib import Path
from wsgiref.validate import validator

sys.path.insert(0, str(Path(__file__).parent))

import wsgi_app

# `validator` allows `read` only with a size, and demands that the iterator is closed.
app = validator(wsgi_app.app)
