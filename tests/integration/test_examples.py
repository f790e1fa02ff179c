"""The example apps, under the worker classes that fit them, with real clients."""

from __future__ import annotations

import hashlib
from collections.abc import Callable

import httpx
import pytest
import requests
from websockets.exceptions import InvalidStatus
from websockets.sync.client import connect
from websockets.typing import Origin

from integration.server import REPOSITORY, Server

EXAMPLES = REPOSITORY / "examples"
UPLOAD = bytes(range(256)) * (50_000_000 // 256 + 1)
DIGEST = hashlib.sha256(UPLOAD).hexdigest()

WSGI_CLASSES = [("-k", "sync"), ("-k", "thread", "--threads", "4"), ("-k", "async")]
FRAMEWORKS = [
    *[("flask_app.py:app", flags) for flags in WSGI_CLASSES],
    *[("django_app.py:app", flags) for flags in WSGI_CLASSES],
    ("django_app.py:asgi_app", ("-k", "async")),
    ("starlette_app.py:app", ("-k", "async")),
    ("fastapi_app.py:app", ("-k", "async")),
    ("starlette_app.py:app", ("-k", "async", "--loop", "asyncio")),
    ("flask_app.py:app", ("-k", "sync", "--http-parser", "h11")),
    ("starlette_app.py:app", ("-k", "async", "--http-parser", "h11")),
]


@pytest.mark.slow
@pytest.mark.parametrize(("app", "flags"), FRAMEWORKS, ids=lambda value: "".join(value))
def test_framework_answers_pages_json_uploads_and_downloads(
    serve: Callable[..., Server], app: str, flags: tuple[str, ...]
) -> None:
    server = serve(f"{EXAMPLES}/{app}", *flags)
    with requests.Session() as session:
        session.trust_env = False
        page = session.get(f"{server.url}/", timeout=30)
        assert page.status_code == 200
        assert "<h1>" in page.text

        value = {"text": "grüße", "list": [1, 2.5, None, True]}
        assert session.post(f"{server.url}/json", json=value, timeout=30).json() == {
            "received": value
        }

        answer = session.post(f"{server.url}/upload", data=UPLOAD, timeout=60)
        assert answer.json() == {"bytes": len(UPLOAD), "sha256": DIGEST}

        assert session.get(f"{server.url}/nowhere", timeout=30).status_code == 404

    with httpx.Client(trust_env=False, timeout=60) as client:
        with client.stream("GET", f"{server.url}/stream?bytes=20000000") as response:
            assert response.status_code == 200
            assert sum(map(len, response.iter_bytes())) == 20_000_000
        # An iterator has no length: httpx sends it chunked.
        halves = iter([UPLOAD[:1_000_000], UPLOAD[1_000_000:2_000_000]])
        answer = client.post(f"{server.url}/upload", content=halves)
        assert answer.json()["sha256"] == hashlib.sha256(UPLOAD[:2_000_000]).hexdigest()


@pytest.mark.slow
def test_all_examples_behind_one_server(serve: Callable[..., Server]) -> None:
    server = serve(f"{EXAMPLES}/all.py:app")
    with httpx.Client(trust_env=False, base_url=server.url, timeout=30) as client:
        assert "examples" in client.get("/").text
        for path, name in [
            ("/flask/", "Flask"),
            ("/django/", "Django"),
            ("/starlette/", "Starlette"),
            ("/fastapi/", "FastAPI"),
            ("/chat/", "Chat"),
        ]:
            page = client.get(path)
            assert (page.status_code, name in page.text) == (200, True), page.text
        answer = client.put("/upload/", content=b"x" * 1000)
        assert answer.json()["bytes"] == 1000
        with client.stream("GET", "/streaming/events") as response:
            assert next(response.iter_lines()).startswith("data: ")
    room = f"ws://127.0.0.1:{server.port}/chat/room"
    with connect(room) as one, connect(room, origin=Origin(server.url)) as two:
        assert "You are in" in str(one.recv(30))
        assert "You are in" in str(two.recv(30))
        one.send("hello")
        assert one.recv(30) == two.recv(30) == "hello"
    with pytest.raises(InvalidStatus, match="403"):
        connect(room, origin=Origin("https://example.org"))


@pytest.mark.slow
@pytest.mark.parametrize("flags", WSGI_CLASSES, ids="".join)
def test_streaming_and_file_examples(serve: Callable[..., Server], flags: tuple[str, ...]) -> None:
    server = serve(f"{EXAMPLES}/streaming_wsgi.py:app", *flags)
    with httpx.Client(trust_env=False, base_url=server.url, timeout=30) as client:
        assert client.get("/file").content == (EXAMPLES / "streaming_wsgi.py").read_bytes()
        assert len(client.get("/generated?bytes=3000000").content) == 3_000_000


@pytest.mark.slow
@pytest.mark.parametrize("flags", WSGI_CLASSES, ids="".join)
def test_upload_example_takes_both_framings(
    serve: Callable[..., Server], flags: tuple[str, ...]
) -> None:
    server = serve(f"{EXAMPLES}/upload.py:app", *flags)
    body = UPLOAD[:3_000_000]
    expected = {"bytes": len(body), "sha256": hashlib.sha256(body).hexdigest()}
    with httpx.Client(trust_env=False, base_url=server.url, timeout=30) as client:
        assert client.put("/", content=body).json() == expected
        assert client.put("/", content=iter([body[:10], body[10:]])).json() == expected
        assert client.get("/files").text == f"Send a file with: curl -T FILE {server.url}/files/\n"


@pytest.mark.slow
def test_example_configuration_files(serve: Callable[..., Server]) -> None:
    """Both say where their app is relative to the repository, as a reader would start them."""
    for name, workers in [("gunicorn.conf.py", 2), ("servo.toml", 1)]:
        # The same server twice would be told apart only by its port, which flags decide.
        server = serve(
            "-c",
            str(EXAMPLES / name),
            "--chdir",
            str(REPOSITORY),
            "-w",
            str(workers),
            ready=workers,
        )
        assert requests.get(f"{server.url}/", timeout=30).status_code == 200
        server.stop()
