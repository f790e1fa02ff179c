"""Configuration files: which one is read, and which of its names count."""

from __future__ import annotations

import inspect
from pathlib import Path

import pytest

from servo.errors import ConfigError
from servo.settings.files import FileContent, apps_of, read_config


def read(directory: Path, text: str, name: str = "servo.conf.py") -> FileContent:
    (directory / name).write_text(text)
    return read_config(name, [directory])


def values(content: FileContent) -> dict[str, object]:
    return {name: given.value for name, given in content.values.items()}


FILES = {
    "servo.toml": "workers = 1\n",
    "pyproject.toml": "[project]\nname = 'x'\n\n[tool.servo]\nworkers = 2\n",
    "servo.conf.py": "workers = 3\n",
    "gunicorn.conf.py": "workers = 4\n",
}


@pytest.mark.parametrize("first", range(len(FILES)))
def test_the_first_file_wins(tmp_path: Path, first: int) -> None:
    for name, text in list(FILES.items())[first:]:
        (tmp_path / name).write_text(text)
    content = read_config(None, [tmp_path])
    assert values(content) == {"workers": first + 1}
    notes = [("info", "reading ./gunicorn.conf.py: there is no servo.toml")]
    assert content.notes == (notes if first == 3 else [])


def test_there_need_be_no_file(tmp_path: Path) -> None:
    assert read_config(None, [tmp_path]) == FileContent()


def test_the_second_directory_is_searched(tmp_path: Path) -> None:
    (tmp_path / "b").mkdir()
    (tmp_path / "b" / "servo.toml").write_text("workers = 9\n")
    assert values(read_config(None, [tmp_path, tmp_path / "b"])) == {"workers": 9}


def test_a_pyproject_of_others_is_not_ours(tmp_path: Path) -> None:
    (tmp_path / "pyproject.toml").write_text("broken = = but not about us\n")
    assert read_config(None, [tmp_path]) == FileContent()
    (tmp_path / "pyproject.toml").write_text("[tool.other]\nservo = 1\n")
    assert read_config(None, [tmp_path]) == FileContent()
    (tmp_path / "pyproject.toml").write_text("[tool]\nservo = 1\n")
    with pytest.raises(ConfigError, match=r"pyproject\.toml: tool\.servo is not a table"):
        read_config(None, [tmp_path])


@pytest.mark.parametrize(
    ("given", "workers"),
    [
        ("servo.toml", 1),
        ("pyproject.toml", 2),
        ("servo.conf.py", 3),
        ("file:gunicorn.conf.py", 4),
        ("python:settings_of_shop", 5),
        ("deploy/odd-name", 6),
    ],
)
def test_a_file_is_named(tmp_path: Path, given: str, workers: int) -> None:
    for name, text in FILES.items():
        (tmp_path / name).write_text(text)
    (tmp_path / "settings_of_shop.py").write_text("workers = 5\n")
    (tmp_path / "deploy").mkdir()
    (tmp_path / "deploy" / "odd-name").write_text("workers = 6\n")
    assert values(read_config(given, [tmp_path])) == {"workers": workers}


def test_an_absolute_path_is_shown_as_it_is(tmp_path: Path) -> None:
    path = tmp_path / "servo.toml"
    path.write_text("workers = 1\n")
    content = read_config(str(path), [Path("/")])
    assert content.values["workers"].source.endswith("servo.toml:1")


# --- TOML -------------------------------------------------------------------------------------


def test_toml_values_and_their_lines(tmp_path: Path) -> None:
    text = """\
# workers = 1
bind = ["127.0.0.1:1", "[::1]:2"]
"workers" = 'auto'

[secure_scheme_headers]
X-SSL = "1"

[logconfig_dict]
version = 1
"""
    content = read(tmp_path, text, "servo.toml")
    assert values(content) == {
        "bind": ["127.0.0.1:1", "[::1]:2"],
        "workers": "auto",
        "secure_scheme_headers": {"X-SSL": "1"},
        "logconfig_dict": {"version": 1},
    }
    assert {name: given.source for name, given in content.values.items()} == {
        "bind": "servo.toml:2",
        "workers": "servo.toml:3",
        "secure_scheme_headers": "servo.toml:5",
        "logconfig_dict": "servo.toml:8",
    }


def test_gunicorns_names_are_read(tmp_path: Path) -> None:
    content = read(tmp_path, "wsgi_app = 'shop:app'\nasgi_loop = 'uvloop'\n", "servo.toml")
    assert values(content) == {"app": "shop:app", "loop": "uvloop"}


def test_gunicorns_settings_without_counterpart(tmp_path: Path) -> None:
    text = "syslog = true\nspew = false\ncertfile = ''\n"
    (note,) = read(tmp_path, text, "servo.toml").notes
    assert note == (
        "warning",
        "gunicorn's syslog (servo.toml:1) has no counterpart here: "
        "log to stderr under systemd, or configure a syslog handler in logconfig_dict",
    )


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("\nwrokers = 2\n", r"no setting wrokers \(servo\.toml:2\); did you mean workers\?"),
        ("worker-class = 'sync'\n", r"worker-class \(servo\.toml:1\); did you mean worker_class\?"),
        ("[tool.servo]\nworkers = 1\n", r"no setting tool \(servo\.toml:1\); .* at the top"),
        (
            "[servo]\nworkers = 1\n",
            r"no setting servo \(servo\.toml:1\); .* at the top, outside any table",
        ),
        ("[secure_scheme_header]\nX = '1'\n", r"did you mean secure_scheme_headers\?"),
        ("workers = = 2\n", r"servo\.toml can't be read: .*line 1"),
        ("on_exit = 'x.y'\n", r"on_exit is a hook \(servo\.toml:1\); hooks need a Python file"),
        (
            "config = 'other.toml'\n",
            r"config is not allowed in a file \(servo\.toml:1\); use a flag",
        ),
        ("check_config = true\n", r"check_config is not allowed in a file"),
    ],
)
def test_mistakes_in_toml(tmp_path: Path, text: str, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        read(tmp_path, text, "servo.toml")


def test_a_table_too_deep_in_pyproject(tmp_path: Path) -> None:
    with pytest.raises(
        ConfigError, match=r"no setting workers_too .* directly into \[tool\.servo\]"
    ):
        read(tmp_path, "[tool.servo.workers_too]\nthreads = 1\n", "pyproject.toml")


# --- Python -----------------------------------------------------------------------------------


def test_python_values_and_their_lines(tmp_path: Path) -> None:
    text = """\
import multiprocessing
from os import path as reload

workers = 1
if True:
    workers = multiprocessing.cpu_count() * 0 + 2
for threads in range(3, 5):
    pass
pidfile = None
daemon: bool = False
def helper():
    backlog = 3
"""
    content = read(tmp_path, text)
    assert values(content) == {"workers": 2, "threads": 4, "daemon": False}
    assert content.values["workers"].source == "servo.conf.py:6"
    assert content.values["threads"].source == "servo.conf.py:7"
    assert content.values["daemon"].source == "servo.conf.py:10"
    assert content.notes == []


def test_python_knows_its_file_and_its_directory(tmp_path: Path) -> None:
    (tmp_path / "beside.py").write_text("COUNT = 3\n")
    text = "import beside\nworkers = beside.COUNT\nproc_name = __file__\n"
    content = read(tmp_path, text)
    assert values(content) == {"workers": 3, "proc_name": str(tmp_path / "servo.conf.py")}
    assert content.modules == ("beside",)


@pytest.mark.parametrize("name", ["servo.conf.py", "settings", "gunicorn.conf"])
def test_a_python_file_has_a_spec_like_an_imported_module(tmp_path: Path, name: str) -> None:
    """Python 3.15 warns of module globals that have no `__spec__.loader`."""
    path = tmp_path / name
    path.write_text("""\
import warnings
def helper(): ...
raw_env = [f"LOADER={__spec__.loader.path}", f"NAME={__loader__.name}", f"FILE={__file__}"]
warnings.warn("seen", stacklevel=1)
on_starting = lambda server: None
""")
    with pytest.warns(UserWarning, match="seen") as caught:
        content = read_config(name, [tmp_path])
    assert len(caught) == 1
    assert values(content)["raw_env"] == [f"LOADER={path}", "NAME=__config__", f"FILE={path}"]
    assert inspect.getsource(content.hooks["on_starting"]).startswith("on_starting =")
    assert [entry.name for entry in tmp_path.iterdir()] == [name]  # no bytecode beside it


def test_a_file_may_define_dataclasses(tmp_path: Path) -> None:
    text = """\
from __future__ import annotations
from dataclasses import dataclass
@dataclass
class Size:
    cpus: int
workers = Size(2).cpus
"""
    assert values(read(tmp_path, text)) == {"workers": 2}


def test_helpers_are_left_alone(tmp_path: Path) -> None:
    text = """\
import os
import inspect
from pathlib import Path
_worker = 1
HERE = Path(__file__).parent
names = ["a"]
def app(environ, start_response): ...
def cpu_count(): ...
config = {"a": 1}
WORKERS = 4
workers = WORKERS
"""
    content = read(tmp_path, text)
    assert values(content) == {"workers": 4}
    assert content.notes == []


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("worker = 2\n", "worker (servo.conf.py:1) is not a setting; did you mean workers?"),
        ("log_level = ''\n", "log_level (servo.conf.py:1) is not a setting; "
         "did you mean loglevel?"),
        ("def on_startin(server): ...\n", "on_startin (servo.conf.py:1) is not a setting; "
         "did you mean on_starting?"),
        ("preload = True\n", "preload (servo.conf.py:1) is not a setting; "
         "did you mean preload_app?"),
        ("log_file = '-'\n", "log_file (servo.conf.py:1) is not a setting; did you mean errorlog?"),
    ],
)  # fmt: skip
def test_near_misses_are_warned_of(tmp_path: Path, text: str, message: str) -> None:
    content = read(tmp_path, text)
    assert content.notes == [("warning", message)]
    assert content.values == {}


def test_a_near_miss_beside_the_setting(tmp_path: Path) -> None:
    content = read(tmp_path, "workers = 2\nworkrs = 3\nTIMEOUT = 5\ntimeout = 6\n")
    message = "workrs (servo.conf.py:2) is not a setting; did you mean workers?"
    assert content.notes == [("warning", message)]


def test_a_helper_that_the_file_uses_is_no_near_miss(tmp_path: Path) -> None:
    text = "worker = 2\nworkers = worker * 2\ndef on_exi(): ...\ndef on_exit(s): on_exi()\n"
    assert read(tmp_path, text).notes == []


def test_settings_without_counterpart_in_python(tmp_path: Path) -> None:
    text = "syslog = True\nspew = False\nkeyfile = None\npaste = 'h'\n"
    notes = read(tmp_path, text, "gunicorn.conf.py").notes
    assert [text.split(" has")[0] for _, text in notes] == [
        "gunicorn's syslog (gunicorn.conf.py:1)",
        "gunicorn's paste (gunicorn.conf.py:4)",
    ]


def test_only_gunicorns_own_file_may_use_our_names_otherwise(tmp_path: Path) -> None:
    text = "log_format = '%(message)s'\nloglevel = 'info'\n"
    content = read(tmp_path, text, "gunicorn.conf.py")
    assert content.values["log_format"].optional
    assert not content.values["loglevel"].optional
    assert not read(tmp_path, text).values["log_format"].optional


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("workers = 1\nthreads =\n", r"^servo\.conf\.py:2: SyntaxError: "),
        ("x = 1\nworkers = x + missing\n", r"^servo\.conf\.py:2: NameError: .* in `workers = x"),
        ("def f():\n    raise OSError('no')\n\nf()\n", r"^servo\.conf\.py:2: OSError: no"),
        ("import sys\nsys.exit(3)\n", r"^servo\.conf\.py:2: SystemExit: 3"),
        ("import broken\n", r"^servo\.conf\.py:1: ValueError: bad in `import broken`"),
        ("import misspelt\n", r"^servo\.conf\.py:1: SyntaxError: "),
    ],
)
def test_a_file_that_raises(tmp_path: Path, text: str, message: str) -> None:
    (tmp_path / "broken.py").write_text("raise ValueError('bad')\n")
    (tmp_path / "misspelt.py").write_text("x =\n")
    with pytest.raises(ConfigError, match=message):
        read(tmp_path, text)


def test_an_interrupt_is_not_the_files_fault(tmp_path: Path) -> None:
    with pytest.raises(KeyboardInterrupt):
        read(tmp_path, "raise KeyboardInterrupt\n")
    (tmp_path / "interrupted.py").write_text("raise KeyboardInterrupt\n")
    with pytest.raises(KeyboardInterrupt):
        read_config("python:interrupted", [tmp_path])


def test_a_module_is_read_anew(tmp_path: Path) -> None:
    path = tmp_path / "deploy_settings.py"
    path.write_text("workers = 1\n\n")
    content = read_config("python:deploy_settings", [tmp_path])
    assert content.values["workers"].source == "python:deploy_settings:1"
    assert content.modules == ("deploy_settings",)
    path.write_text("workers = 1 + 1\n")
    assert values(read_config("python:deploy_settings", [tmp_path])) == {"workers": 2}


def test_a_module_that_is_missing_or_raises(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"python:not_there: ModuleNotFoundError"):
        read_config("python:not_there", [tmp_path])
    (tmp_path / "raises.py").write_text("\n1 / 0\n")
    with pytest.raises(ConfigError, match=r"python:raises:2: ZeroDivisionError: .* in `1 / 0`"):
        read_config("python:raises", [tmp_path])


def test_a_missing_file(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"there is no configuration file missing\.py"):
        read_config("missing.py", [tmp_path])


# --- several apps in one file ---------------------------------------------------------------------

APPS = """workers = 2
timeout = 9

[apps.shop]
app = "shop:app"
timeout = 5

[apps."the api"]
app = "api:app"
workers = 4
proc_name = "api"

[apps.empty]
"""


def read_app(directory: Path, app: str | None, text: str = APPS) -> FileContent:
    (directory / "servo.toml").write_text(text)
    return read_config(None, [directory], app)


def test_the_apps_of_a_file(tmp_path: Path) -> None:
    content = read_app(tmp_path, "shop")
    assert content.chosen == "shop"
    assert values(content) == {
        "workers": 2,
        "timeout": 5,
        "app": "shop:app",
        "proc_name": "shop",
    }
    assert content.values["timeout"].source == "servo.toml:6"
    assert content.values["workers"].source == "servo.toml:1"
    content = read_app(tmp_path, "the api")
    assert (content.values["workers"].value, content.values["workers"].source) == (
        4,
        "servo.toml:10",
    )
    assert content.values["proc_name"].value == "api"
    assert apps_of(tmp_path / "servo.toml") == ["shop", "the api", "empty"]


def test_an_app_that_is_no_name(tmp_path: Path) -> None:
    content = read_app(tmp_path, "other:app")
    assert content.chosen == ""
    assert values(content) == {"workers": 2, "timeout": 9}


@pytest.mark.parametrize(
    ("app", "message"),
    [
        (None, "several apps .shop, the api, empty.: say which, as in servo -c servo.toml shop"),
        ("shpo", "no app shpo; did you mean shop"),
        ("blog", "no app blog; it has shop, the api, empty"),
        ("empty", r"apps.empty has no app .servo.toml:13"),
    ],
)
def test_which_app_is_meant(tmp_path: Path, app: str | None, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        read_app(tmp_path, app)


def test_a_mistake_in_the_table_of_an_app(tmp_path: Path) -> None:
    text = APPS + "[apps.blog]\napp = 'a:b'\nwrokers = 3\n"
    with pytest.raises(ConfigError, match=r"no setting wrokers \(servo.toml:16\).*workers"):
        read_app(tmp_path, "blog", text)
