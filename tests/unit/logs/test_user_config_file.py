"""Files with a logging configuration: their forms, and messages about their errors."""

from __future__ import annotations

import logging
import sys

import pytest
from log_settings import log_settings

from servo.errors import ConfigError
from servo.logs.error_log import check_logging, setup_logging
from servo.settings.sections.process import SETTINGS, split_form

pytestmark = pytest.mark.usefixtures("untouched_logging")

error_log = logging.getLogger("servo.error")

JSON = """\
{
  "version": 1,
  "formatters": {"plain": {"format": "own %(message)s"}},
  "handlers": {
    "own": {"class": "logging.FileHandler", "filename": "OWN", "formatter": "plain"}
  },
  "loggers": {"servo.error": {"handlers": ["own"], "level": "INFO"}}
}
"""
YAML = """\
# The form that uvicorn's users have.
version: 1
formatters:
  plain:
    format: own %(message)s
handlers:
  own:
    class: logging.FileHandler
    filename: OWN
    formatter: plain
loggers:
  servo.error:
    handlers: [own]
    level: INFO
"""
TOML = """\
version = 1
[formatters.plain]
format = "own %(message)s"
[handlers.own]
class = "logging.FileHandler"
filename = "OWN"
formatter = "plain"
[loggers."servo.error"]
handlers = ["own"]
level = "INFO"
"""
INI = """\
; The form of logging.config.fileConfig
[loggers]
keys=root,error
[handlers]
keys=own
[formatters]
keys=plain
[logger_root]
handlers=
[logger_error]
qualname=servo.error
handlers=own
level=INFO
propagate=0
[handler_own]
class=FileHandler
formatter=plain
args=("OWN",)
[formatter_plain]
format=own %(message)s
"""


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("log.json", JSON),
        ("log.JSON", JSON),
        ("log.yaml", YAML),
        ("log.yml", YAML),
        ("log.toml", TOML),
        ("log.ini", INI),
        ("log.cfg", INI),
        *[("log.conf", text) for text in (JSON, YAML, TOML, INI)],
        *[("log", text) for text in ("\n" + JSON, "---\n" + YAML, "# x\n" + TOML, INI)],
        ("log.conf", "\ufeff" + JSON),
        ("log.yaml", "filters:\n" + YAML),
        ("log.conf", TOML.replace("version = 1\n", "")),
    ],
)
def test_each_form_of_file_is_recognised(tmp_path, name, text):
    if text.endswith(YAML):
        pytest.importorskip("yaml")
    own = tmp_path / "own.log"
    path = tmp_path / name
    path.write_text(text.replace("OWN", str(own)))
    check_logging(log_settings(logconfig=str(path)))
    assert not own.exists()
    setup_logging(log_settings(errorlog=str(tmp_path / "log.error"), logconfig=str(path)))
    error_log.info("line")
    assert own.read_text() == "own line\n"
    assert (tmp_path / "log.error").read_text() == ""


@pytest.mark.parametrize(("prefix", "text"), [("json:", JSON), ("toml:", TOML), ("ini:", INI)])
def test_hypercorns_prefix_names_the_form(tmp_path, prefix, text):
    own = tmp_path / "own.log"
    path = tmp_path / "log.txt"
    path.write_text(text.replace("OWN", str(own)))
    setting = next(setting for setting in SETTINGS if setting.name == "logconfig")
    setting.check(f"{prefix}log.txt", "here", tmp_path)
    with pytest.raises(ConfigError, match="expected an existing file"):
        setting.check(f"{prefix}other.txt", "here", tmp_path)
    setup_logging(log_settings(logconfig=f"{prefix}{path}"))
    error_log.info("line")
    assert own.read_text() == "own line\n"


def test_an_unknown_prefix_belongs_to_the_path():
    assert split_form("log:x.json") == ("", "log:x.json")
    assert split_form("json:") == ("", "json:")
    assert split_form("toml:a:b") == ("toml", "a:b")


SECRET = "pass" + "word"  # stands in for the rest of the file


@pytest.mark.parametrize(
    ("name", "text", "says"),
    [
        ("log.json", '{\n"version": 1,\n"x": [SECRET]\n}', ":3: not valid JSON: Expecting value"),
        ("log.json", "", ":1: not valid JSON: Expecting value"),
        ("log.json", '["SECRET"]', ": a logging configuration must be a table, not list"),
        ("log.json", "[" * 100_000, ": not valid JSON: nested too deep"),
        ("log.yaml", "version: 1\nhandlers: {a: [SECRET\n", ":3: not valid YAML: "),
        ("log.yaml", "version: 1\n\tx: SECRET\n", ":2: not valid YAML: "),
        ("log.yaml", "version: 1\nx: !!python/object:os.system SECRET\n", ":2: not valid YAML: "),
        ("log.yaml", "version: 1\nx: SECRET\x01\n", ":2: not valid YAML: "),
        ("log.yaml", "SECRET", ": a logging configuration must be a table, not str"),
        ("log.yaml", "", ": a logging configuration must be a table, not NoneType"),
        ("log.toml", "version = 1\nx = SECRET\n", ":2: not valid TOML: Invalid value"),
        ("log.toml", "version = 1\nversion = 2\n", ":2: not valid TOML: Cannot overwrite a value"),
        ("log.ini", "SECRET\n[loggers]\n", ":1: neither INI (there is no [section] before"),
        (
            "log.ini",
            "[loggers]\nkeys=root\nSECRET\nSECRET\n",
            ":3: not valid INI: neither a [section]",
        ),
        ("log.ini", "[loggers]\nkeys=root\n[loggers]\n", ":3: not valid INI: a second [loggers]"),
        ("log.ini", "[loggers]\nkeys=root\nkeys=SECRET\n", ":3: not valid INI: a second keys in ["),
        ("log.ini", "[loggers]\nkeys=root\n", ": 'formatters' is missing"),
        ("log", "what SECRET\n", ":1: neither INI (there is no [section] before this line)"),
        ("log.json", b'{\n"x": "SECRET\xff"}', ":2: not UTF-8 (invalid start byte)"),
    ],
)
def test_an_error_in_a_file_is_named_with_its_line(tmp_path, name, text, says):
    if name == "log.yaml":
        pytest.importorskip("yaml")
    path = tmp_path / name
    data = text if isinstance(text, bytes) else text.encode()
    path.write_bytes(data.replace(b"SECRET", SECRET.encode()))
    for use in (check_logging, setup_logging):
        with pytest.raises(ConfigError) as caught:
            use(log_settings(logconfig=str(path)))
        message = str(caught.value)
        assert message.startswith(f"logconfig {path}{says}")
        assert "\n" not in message
        assert SECRET not in message or "a second" in message


# If a configuration fails half-way, a file handler that it has created stays open until the garbage
# collector runs. So these configurations have none.
NO_FILE = {
    '"logging.FileHandler", "filename": "OWN"': '"logging.StreamHandler"',
    "logging.FileHandler\n    filename: OWN": "logging.StreamHandler",
    'FileHandler\nformatter=plain\nargs=("OWN",)': "StreamHandler\nformatter=plain\nargs=()",
}


def without_file(text: str) -> str:
    for before, after in NO_FILE.items():
        text = text.replace(before, after)
    return text


@pytest.mark.parametrize(
    ("name", "text", "says"),
    [
        (
            "log.json",
            JSON.replace("logging.FileHandler", "no.such.Handler"),
            ":5: Unable to configure handler 'own' (Cannot resolve 'no.such.Handler': No module",
        ),
        ("log.json", JSON.replace('"plain": {', '"other": {'), ":5: Unable to configure handler"),
        (
            "log.json",
            without_file(JSON).replace('["own"]', '["gone"]'),
            ":7: Unable to configure logger 'servo.error' (Unable to add handler 'gone': 'gone'",
        ),
        ("log.json", JSON.replace("1", "2"), ": Unsupported version: 2"),
        ("log.json", '{"loggers": ["app"]}', ": loggers must be a table, not list"),
        ("log.json", '{"loggers": {"servo.error": 1}}', ":1: Unable to configure logger 'servo"),
        (
            "log.toml",
            TOML.replace("OWN", "/nonexistent/OWN"),
            ":4: Unable to configure handler 'own' ([Errno 2] No such file or directory",
        ),
        (
            "log.yaml",
            without_file(YAML).replace("INFO", "LOUD"),
            ":11: Unable to configure logger 'servo.error'",
        ),
        ("log.ini", without_file(INI).replace("()", "(("), ": "),
        ("log.ini", INI.replace("FileHandler", "NoHandler"), ": No module named 'NoHandler'"),
        (
            "log.ini",
            without_file(INI).replace("handlers=own", "handlers=gone"),
            ": 'gone' is missing",
        ),
    ],
)
def test_a_part_that_can_not_be_applied_is_named_with_its_line(tmp_path, name, text, says):
    if name == "log.yaml":
        pytest.importorskip("yaml")
    path = tmp_path / name
    path.write_text(text.replace("OWN", str(tmp_path / "own.log")))
    for use in (check_logging, setup_logging):
        with pytest.raises(ConfigError) as caught:
            use(log_settings(logconfig=str(path)))
        assert str(caught.value).startswith(f"logconfig {path}{says}")
        assert "\n" not in str(caught.value)


def test_yaml_without_its_library(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "yaml", None)
    path = tmp_path / "log.yaml"
    path.write_text(YAML)
    with pytest.raises(ConfigError) as caught:
        check_logging(log_settings(logconfig=str(path)))
    assert str(caught.value) == f"logconfig {path}: YAML needs PyYAML: pip install PyYAML"


def test_a_file_that_can_not_be_opened(tmp_path):
    with pytest.raises(ConfigError, match=rf"logconfig {tmp_path} can't be read: Is a directory"):
        check_logging(log_settings(logconfig=str(tmp_path)))


# --- uvicorn's ----------------------------------------------------------------------------------
