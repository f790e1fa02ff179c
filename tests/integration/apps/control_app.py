"""An app that controls its server (WSGI): the path names the call."""

from servo import cluster

CALLS = {
    "/retire": lambda: cluster.retire("as the test says"),
    "/reload": cluster.reload,
    "/up": lambda: cluster.scale(3),
    "/too-many": lambda: cluster.scale(900_000),
}


def app(environ, start_response):
    status, body = "200 OK", b"done"
    try:
        CALLS.get(environ["PATH_INFO"], str)()
    except cluster.ClusterError as error:
        status, body = "403 Forbidden", str(error).encode()
    start_response(status, [("Content-Length", str(len(body)))])
    return [body]
