"""The layout of the code: no import cycle, tests mirror `servo/`, each constant exists once."""

from __future__ import annotations

import ast
from collections import defaultdict
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PACKAGE = ROOT / "servo"
UNIT = ROOT / "tests" / "unit"


def module_name(path: Path) -> str:
    parts = path.relative_to(ROOT).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


TREES = {
    module_name(path): ast.parse(path.read_text(encoding="utf-8"))
    for path in sorted(PACKAGE.rglob("*.py"))
}


def imports(name: str) -> set[str]:
    """The modules of `servo` that a module imports anywhere, for types only included."""
    found: set[str] = set()
    for node in ast.walk(TREES[name]):
        if isinstance(node, ast.Import):
            found.update(alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module is not None:
            for alias in node.names:
                whole = f"{node.module}.{alias.name}"
                found.add(whole if whole in TREES else node.module)
    return (found & TREES.keys()) - {name}


def cycles(graph: dict[str, set[str]]) -> list[list[str]]:
    """The groups of modules that import each other: Tarjan's strongly connected components."""
    index: dict[str, int] = {}
    low: dict[str, int] = {}
    stack: list[str] = []
    found: list[list[str]] = []

    def visit(name: str) -> None:
        index[name] = low[name] = len(index)
        stack.append(name)
        for other in sorted(graph[name]):
            if other not in index:
                visit(other)
                low[name] = min(low[name], low[other])
            elif other in stack:
                low[name] = min(low[name], index[other])
        if low[name] == index[name]:
            start = stack.index(name)
            group = stack[start:]
            del stack[start:]
            if len(group) > 1:
                found.append(sorted(group))

    for name in graph:
        if name not in index:
            visit(name)
    return found


def test_cycles_are_found() -> None:
    graph = {"a": {"b"}, "b": {"c"}, "c": {"b", "d"}, "d": set(), "e": {"a"}}
    assert cycles(graph) == [["b", "c"]]


def test_no_modules_import_each_other() -> None:
    assert cycles({name: imports(name) for name in TREES}) == []


# --- tests ----------------------------------------------------------------------------------------


def has_logic(tree: ast.Module) -> bool:
    """Whether a module has a function with more than one statement besides its docstring."""
    return any(
        isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)
        and node.name != "__init__"
        and len(node.body) - (ast.get_docstring(node) is not None) > 1
        for node in ast.walk(tree)
    )


def is_test_of(test: Path, module: str) -> bool:
    folder, _, stem = module.removeprefix("servo.").rpartition(".")
    names = (f"test_{stem}", f"test_{stem.strip('_')}")
    return test.parent == UNIT / folder.replace(".", "/") and any(
        test.stem == name or test.stem.startswith(f"{name}_") for name in names
    )


TESTS = sorted(UNIT.rglob("test_*.py"))


@pytest.mark.parametrize("test", [str(path.relative_to(UNIT)) for path in TESTS])
def test_a_unit_test_is_named_after_its_module(test: str) -> None:
    assert any(is_test_of(UNIT / test, name) for name in TREES), (
        f"tests/unit/{test} belongs to no module: name it test_MODULE.py or test_MODULE_TOPIC.py"
    )


@pytest.mark.parametrize("name", [name for name, tree in TREES.items() if has_logic(tree)])
def test_a_module_has_unit_tests(name: str) -> None:
    assert any(is_test_of(path, name) for path in TESTS), f"{name} has no unit tests"


# --- constants ------------------------------------------------------------------------------------


def constants(tree: ast.Module) -> dict[str, ast.expr]:
    """The constants of a module by name, without leading underscores."""
    found: dict[str, ast.expr] = {}
    for node in tree.body:
        match node:
            case ast.Assign(targets=[ast.Name(id=name)], value=value):
                pass
            case ast.AnnAssign(target=ast.Name(id=name), value=ast.expr() as value):
                pass
            case _:
                continue
        if name == name.upper():
            found[name.lstrip("_")] = value
    return found


def is_a_member(value: ast.expr) -> bool:
    """Whether it may be one of a series of names for states or positions: 0, 1, 2 …"""
    return isinstance(value, ast.Constant) and value.value in range(100)


def test_each_constant_exists_once() -> None:
    places: defaultdict[tuple[str, str], list[str]] = defaultdict(list)
    for module, tree in TREES.items():
        for name, value in constants(tree).items():
            if not is_a_member(value) or isinstance(value.value, float):  # type: ignore[attr-defined]
                places[name, ast.unparse(value)].append(module)
    assert {key: found for key, found in places.items() if len(found) > 1} == {}
