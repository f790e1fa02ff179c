"""Style rules that no linter has, checked on the syntax trees of `servo/`."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parents[2] / "servo"
SOURCES = {str(path.relative_to(PACKAGE)): path for path in sorted(PACKAGE.rglob("*.py"))}

# A file holds one object, however long that is; past this it is likely to be two.
FILE_LINES = 900
FUNCTION_LINES = 60


@pytest.fixture(params=SOURCES)
def name(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture
def tree(name: str) -> ast.Module:
    return ast.parse(SOURCES[name].read_text(encoding="utf-8"))


def functions(tree: ast.Module) -> Iterator[ast.FunctionDef | ast.AsyncFunctionDef]:
    for node in ast.walk(tree):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            yield node


def test_there_is_something_to_check() -> None:
    assert len(SOURCES) > 10


def test_file_is_not_too_long(name: str) -> None:
    lines = SOURCES[name].read_text(encoding="utf-8").count("\n")
    assert lines <= FILE_LINES, f"{lines} lines: a boundary is in the wrong place"


def test_functions_fit_a_screen(tree: ast.Module) -> None:
    long = {
        f.name: n for f in functions(tree) if (n := f.end_lineno - f.lineno + 1) > FUNCTION_LINES
    }
    assert long == {}


def test_module_says_what_it_is(name: str, tree: ast.Module) -> None:
    assert ast.get_docstring(tree), f"{name} has no docstring"


def test_no_exception_is_swallowed_wholesale(tree: ast.Module) -> None:
    """`except Exception: pass`, and the same in the words of contextlib."""
    swallowed = [
        node.lineno
        for node in ast.walk(tree)
        if (isinstance(node, ast.ExceptHandler) and broad(node.type) and empty(node.body))
        or (
            isinstance(node, ast.Call) and called(node) == "suppress" and any(map(broad, node.args))
        )
    ]
    assert swallowed == []


def broad(node: ast.expr | None) -> bool:
    if isinstance(node, ast.Tuple):
        return any(map(broad, node.elts))
    return node is None or (
        isinstance(node, ast.Name) and node.id in ("Exception", "BaseException")
    )


def empty(body: list[ast.stmt]) -> bool:
    """Whether these statements do nothing at all."""
    return all(
        isinstance(statement, ast.Pass | ast.Continue)
        or (isinstance(statement, ast.Expr) and isinstance(statement.value, ast.Constant))
        for statement in body
    )


def called(node: ast.Call) -> str:
    """The last name of what is called: `exit` for `sys.exit(…)`."""
    function = node.func
    return function.attr if isinstance(function, ast.Attribute) else getattr(function, "id", "")


# `servo.run` is the command as a function.
COMMANDS = {"__main__.py", "cli/main.py", "cli/ctl.py", "serving/run.py"}


@pytest.mark.parametrize("name", sorted({*SOURCES} - COMMANDS))
def test_library_code_does_not_end_the_process(tree: ast.Module) -> None:
    """Only a command turns errors into an exit status; a forked child ends by `os._exit`."""
    exits = [
        node.lineno
        for node in ast.walk(tree)
        if (isinstance(node, ast.Call) and ast.unparse(node.func) in ("sys.exit", "exit", "quit"))
        or (isinstance(node, ast.Raise) and "SystemExit" in ast.unparse(node))
    ]
    assert exits == []


@pytest.mark.parametrize("name", [name for name in SOURCES if not name.startswith("cli/")])
def test_only_the_command_line_prints(tree: ast.Module) -> None:
    prints = [
        node.lineno
        for node in ast.walk(tree)
        if isinstance(node, ast.Call)
        and ast.unparse(node.func) in ("print", "click.echo")
        and not any(keyword.arg == "file" for keyword in node.keywords)
    ]
    assert prints == []


@pytest.mark.parametrize("name", [name for name in SOURCES if name.startswith("http/")])
def test_http_waits_for_nothing(tree: ast.Module) -> None:
    """Sans-I/O code has nothing to await."""
    assert [f.name for f in functions(tree) if isinstance(f, ast.AsyncFunctionDef)] == []


def test_no_unfinished_business(name: str) -> None:
    text = SOURCES[name].read_text(encoding="utf-8")
    assert re.findall(r"\b(?:TODO|FIXME|XXX|HACK)\b.*", text) == []
