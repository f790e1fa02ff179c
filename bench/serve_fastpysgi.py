"""Start fastpysgi with a number of workers, for which its own command line has no flag.

serve_fastpysgi.py MODULE:ATTRIBUTE PORT WORKERS [CERTIFICATE]
"""

import importlib
import sys

import fastpysgi

module, _, attribute = sys.argv[1].partition(":")
port, workers = int(sys.argv[2]), int(sys.argv[3])
if len(sys.argv) > 4:
    fastpysgi.server.tls_list = [(sys.argv[4], sys.argv[4])]
app = getattr(importlib.import_module(module), attribute)
fastpysgi.run(app, "127.0.0.1", port, workers=workers)
