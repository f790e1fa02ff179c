"""All forms of naming an app, and the messages for apps that can't be loaded."""

from __future__ import annotations

import asyncio
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from servo.apps.loader import load_app, prepare_import_path
from servo.errors import AppImportError
from servo.settings.sources import load_settings

SHOP = """\
def app(environ, start_response):
    return ["app"]

def application(environ, start_response):
    return ["application"]

class Holder:
    app = staticmethod(application)
    class inner:
        @staticmethod
        def build():
            return app

def build(*args, **kwargs):
    def built(environ, start_response):
        return [args, kwargs]
    return built

def fails():
    raise OSError("no database")

def leaves():
    import sys
    sys.exit("gone")

def nothing(): ...

async def coroutine(): ...

def needs(argument): ...

async def asgi(scope, receive, send): ...

class Double:
    def __init__(self, scope):
        self.scope = scope
    async def __call__(self, receive, send):
        await send((self.scope, await receive()))

class Server:
    def __call__(self, environ, start_response): ...

number = 3
"""


@pytest.fixture(autouse=True)
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A directory with a module. It is the current directory and the first on the path."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [str(tmp_path), *sys.path])
    monkeypatch.setattr(sys, "dont_write_bytecode", True)
    before = dict(sys.modules)
    write(tmp_path / "shop.py", SHOP)
    yield tmp_path
    for name in {*sys.modules} - {*before}:
        if str(tmp_path) in (getattr(sys.modules[name], "__file__", None) or ""):
            del sys.modules[name]


def write(path: Path, text: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)


def answer(spec: str) -> Any:
    loaded = load_app(spec)
    assert (loaded.interface, loaded.is_asgi2) == ("wsgi", False)
    return loaded.app({}, None)[0]


def refusal(spec: str, interface: str = "auto") -> AppImportError:
    with pytest.raises(AppImportError) as caught:
        load_app(spec, interface)
    return caught.value


@pytest.mark.parametrize(
    ("spec", "expected"),
    [
        ("shop:app", "app"),
        (" shop:app ", "app"),
        ("shop", "app"),
        ("shop:Holder.app", "application"),
        ("shop:Holder.inner.build()", "app"),
        ("shop.py", "app"),
        ("shop.py:application", "application"),
        ("./shop.py:build().__call__", None),
    ],
)
def test_forms(spec: str, expected: str | None) -> None:
    if expected is None:
        assert "must be an attribute or a call of one" in str(refusal(spec))
    else:
        assert answer(spec) == expected


def test_arguments_of_a_factory_are_literals(home: Path) -> None:
    assert load_app("shop:build()").app({}, None) == [(), {}]
    spec = "shop:build('a', -1, [1, (2.5, None)], debug=True, options={'x': b'y'})"
    args = ("a", -1, [1, (2.5, None)])
    assert load_app(spec).app({}, None) == [args, {"debug": True, "options": {"x": b"y"}}]


def test_an_absolute_path_from_elsewhere(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write(home / "deep" / "web.py", "import beside\napp = beside.app\n")
    write(home / "deep" / "beside.py", SHOP)
    assert answer(f"{home}/deep/web.py:app") == "app"
    module = sys.modules["web"]
    assert answer("deep/web.py") == "app"
    assert sys.modules["web"] is module  # the same file is not executed twice


def test_a_file_of_a_package_is_imported_as_its_module(home: Path) -> None:
    write(home / "src" / "pkg" / "__init__.py", "")
    write(home / "src" / "pkg" / "sub" / "__init__.py", "from .web import app\n")
    write(home / "src" / "pkg" / "sub" / "web.py", "from ..base import app\n")
    write(home / "src" / "pkg" / "base.py", SHOP)
    assert answer("src/pkg/sub/web.py:app") == "app"
    assert "pkg.sub.web" in sys.modules
    assert answer("src/pkg/sub/__init__.py:app") == "app"


def test_a_file_named_like_a_module_that_is_loaded(home: Path) -> None:
    write(home / "deep" / "json.py", SHOP)
    write(home / "deep" / "my-app.py", SHOP)
    assert answer("deep/json.py:application") == "application"
    assert "Encoder" in str(sys.modules["json"].JSONEncoder)
    assert answer("deep/my-app.py") == "app"


@pytest.mark.parametrize(
    ("source", "expected"),
    [
        ("def application(e, s): return ['application']", "application"),
        ("def create_app():\n    return lambda e, s: ['created']", "created"),
        ("application = lambda e, s: ['b']\ndef create_app(): raise OSError", "b"),
    ],
)
def test_a_module_alone(home: Path, source: str, expected: str) -> None:
    write(home / "alone.py", source)
    assert answer("alone") == expected


def test_asgi() -> None:
    loaded = load_app("shop:asgi")
    assert (loaded.interface, loaded.is_asgi2) == ("asgi", False)


def test_a_double_callable_is_wrapped() -> None:
    loaded = load_app("shop:Double")
    assert (loaded.interface, loaded.is_asgi2) == ("asgi", True)
    sent: list[Any] = []

    async def receive() -> str:
        return "received"

    async def send(message: Any) -> None:
        sent.append(message)

    asyncio.run(loaded.app("scope", receive, send))
    assert sent == [("scope", "received")]
    assert load_app("shop:Double", "asgi").is_asgi2


def test_the_interface_may_be_given() -> None:
    assert load_app("shop:app", "asgi").interface == "asgi"
    assert load_app("shop:asgi", "wsgi").interface == "wsgi"
    assert "neither" in str(refusal("shop:number", "wsgi"))
    assert "neither" in str(refusal("shop:number", "asgi"))


@pytest.mark.parametrize(
    ("spec", "says"),
    [
        ("", "'' names no app; the forms are module:attribute, module,"),
        (":app", "names no app"),
        ("shop:", "names no app"),
        ("not-a-module:app", "'not-a-module' is not the name of a module"),
        ("shop:app()()", "must be an attribute or a call of one"),
        ("shop:[1]", "must be an attribute or a call of one"),
        ("shop:app, app", "must be an attribute or a call of one"),
        ("shop:a b", "is neither an attribute nor a call"),
        ("shop:build(open('x'))", "must be literals"),
        ("shop:build(*[1])", "must be literals"),
        ("shop:build(**{'a': 1})", "without **"),
        ("shop:ap", "shop has no attribute 'ap'; did you mean app?"),
        ("shop:Holder.ap", "shop:Holder has no attribute 'ap'; did you mean app?"),
        ("shop:zzzzzz", "shop has no attribute 'zzzzzz'"),
        ("shop:number()", "shop:number() can't be called: it is an object of type int"),
        ("shop:number", "shop:number is an object of type int, neither a WSGI nor an ASGI app"),
        ("shop:needs", "neither a WSGI nor an ASGI app"),
        ("shop:nothing", "shop:nothing looks like a factory; write shop:nothing() to call it"),
        ("shop:nothing()", "shop:nothing() returned None instead of an app"),
        ("shop:coroutine()", "shop:coroutine() is a coroutine function"),
        ("shop:needs()", "shop:needs() doesn't take these arguments: needs() missing 1 required"),
        ("shop:fails()", "importing shop:fails() failed: OSError: no database"),
        ("shop:leaves()", "importing shop:leaves() failed: it called sys.exit('gone')"),
        ("shop:Server", "shop:Server is a class; name an instance, or write shop:Server()"),
        ("shpo:app", "there is no module 'shpo' in "),
        ("shpo:app", "; did you mean shop?"),
        ("zzzzzz:app", "; --chdir or --pythonpath says where to look"),
        ("shop.web:app", "there is no module 'shop.web': 'shop' is not a package"),
        ("shpo.web:app", "there is no module 'shpo' (of 'shpo.web') in "),
        ("shpo.py:app", "there is no file shpo.py (looked for "),
        ("shpo.py:app", "; did you mean shop.py?"),
        ("nowhere/shop.py", "there is no file nowhere/shop.py"),
    ],
)
def test_messages(spec: str, says: str) -> None:
    assert says in str(refusal(spec))


def test_the_directories_that_were_searched_are_named(home: Path) -> None:
    assert str(home.resolve()) in str(refusal("missing:app"))
    write(home / "pkg" / "__init__.py", "")
    write(home / "pkg" / "web.py", SHOP)
    message = str(refusal("pkg.wbe:app"))
    assert f"there is no module 'pkg.wbe' in {home.resolve()}/pkg; did you mean pkg.web?" in message


def test_a_module_without_any_of_the_names(home: Path) -> None:
    write(home / "other.py", SHOP.replace("app", "xyz") + "\nserver = Server()\n")
    says = "other has no app, application or create_app; did you mean other:server?"
    assert str(refusal("other")) == says
    write(home / "empty.py", "import os\nx = 1\n")
    assert str(refusal("empty")).endswith("create_app; say empty:NAME")


def test_an_import_that_raises(home: Path) -> None:
    write(home / "broken.py", "def f():\n    raise OSError('no database')\n\nf()\n")
    error = refusal("broken:app")
    assert str(error) == "importing broken failed: OSError: no database"
    lines = error.details.splitlines()
    assert lines[0] == "Traceback (most recent call last):"
    assert lines[1].endswith('broken.py", line 4, in <module>')
    assert lines[-1] == "OSError: no database"
    assert "importlib" not in error.details
    assert "loader.py" not in error.details
    assert refusal("broken.py").details == error.details


@pytest.mark.parametrize(
    ("source", "says"),
    [
        ("import not_installed\n", "ModuleNotFoundError: No module named 'not_installed'"),
        ("import broken.inner\n", "ModuleNotFoundError"),
        ("def f(:\n", "SyntaxError: "),
        ("import sys\nsys.exit(1)\n", "it called sys.exit(1)"),
        ("import asyncio\nraise asyncio.CancelledError\n", "CancelledError"),
        ("class E(Exception): ...\nraise E('one\\ntwo')\n", "broken.E: one"),
    ],
)
def test_an_import_that_fails_inside(home: Path, source: str, says: str) -> None:
    write(home / "broken.py", source)
    for spec in ("broken:app", "broken.py:app"):
        error = refusal(spec)
        assert says in str(error)
        assert str(error).startswith("importing ")
        assert "broken.py" in error.details
    assert "broken" not in sys.modules


@pytest.mark.parametrize(
    ("source", "says"),
    [
        (
            "raise ValueError('1 validation error for Settings\\nSECRET\\n  Field required\\n"
            "    For further information visit https://example.org')",
            "ValueError: 1 validation error for Settings",
        ),
        ("def app(:\n", "SyntaxError: invalid syntax"),
        ("raise ValueError('\\nthe second line')", "ValueError: "),
        (
            "class Error(Exception):\n    __str__ = None\nraise Error",
            "broken.Error: <exception str",
        ),
    ],
)
def test_the_reason_is_the_first_line_of_a_message(home: Path, source: str, says: str) -> None:
    (home / "broken.py").write_text(source)
    assert str(refusal("broken")).startswith(f"importing broken failed: {says}")


def test_the_causes_of_an_error_are_shown_too(home: Path) -> None:
    write(home / "inner.py", "raise KeyError('inner')\n")
    source = (
        "try:\n    import inner\nexcept KeyError as error:\n    raise OSError('outer') from error\n"
    )
    write(home / "broken.py", source)
    details = refusal("broken").details
    assert "KeyError: 'inner'" in details
    assert "direct cause" in details
    assert "importlib" not in details


def test_an_attribute_that_raises(home: Path) -> None:
    write(home / "lazy.py", "def __getattr__(name):\n    raise OSError('no database')\n")
    assert str(refusal("lazy:app")) == "importing lazy:app failed: OSError: no database"


@pytest.mark.parametrize("spec", ["interrupted:app", "interrupted.py", "lazily:app", "asked:f()"])
def test_an_interrupt_is_not_the_apps_fault(home: Path, spec: str) -> None:
    write(home / "interrupted.py", "raise KeyboardInterrupt\n")
    write(home / "lazily.py", "def __getattr__(name):\n    raise KeyboardInterrupt\n")
    write(home / "asked.py", "def f():\n    raise KeyboardInterrupt\n")
    with pytest.raises(KeyboardInterrupt):
        load_app(spec)


def test_import_path(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "path", ["/elsewhere", str(home / "b")])
    flags = {"pythonpath": "a,b,/c", "chdir": str(home)}
    settings = load_settings(flags, {}, home)
    expected = [str(home / "a"), str(home / "b"), "/c", str(home.resolve()), "/elsewhere"]
    prepare_import_path(settings)
    assert sys.path == expected
    prepare_import_path(settings)
    assert sys.path == expected
