"""The user's own logging configuration, also one written for gunicorn or uvicorn."""

from __future__ import annotations

import json
import logging

import pytest
from log_settings import file_config, log_settings

from servo.errors import ConfigError
from servo.logs import error_log as error_log_module
from servo.logs.error_log import (
    check_logging,
    reopen_logs,
    setup_logging,
)

pytestmark = pytest.mark.usefixtures("untouched_logging")


@pytest.fixture
def path(tmp_path):
    return tmp_path / "error.log"


error_log = logging.getLogger("servo.error")


@pytest.mark.parametrize("kind", ["dict", "json", "ini"])
def test_a_configuration_for_gunicorns_logger_applies_to_ours(tmp_path, path, kind):
    own = tmp_path / "own.log"
    if kind == "dict":
        changes = {"logconfig_dict": file_config(own)}
    elif kind == "json":
        (tmp_path / "log.json").write_text(json.dumps(file_config(own)))
        changes = {"logconfig_json": str(tmp_path / "log.json")}
    else:
        (tmp_path / "log.ini").write_text(
            "[loggers]\nkeys=root,error\n[handlers]\nkeys=own\n[formatters]\nkeys=plain\n"
            "[logger_root]\nhandlers=\n"
            "[logger_error]\nhandlers=own\nqualname=gunicorn.error\nlevel=INFO\npropagate=0\n"
            "[handler_own]\nclass=FileHandler\nargs=('%(here)s/own.log',)\nformatter=plain\n"
            "[formatter_plain]\nformat=%(levelname)s: %(message)s\n"
        )
        changes = {"logconfig": str(tmp_path / "log.ini")}
    setup_logging(log_settings(errorlog=str(path), **changes))
    error_log.info("hello")
    assert own.read_text() == ("INFO: hello\n" if kind == "ini" else "hello\n")
    assert path.read_text() == ""
    assert not error_log_module.user_handles_access_log()


def test_a_removed_configuration_leaves_nothing_behind(tmp_path, path):
    own = tmp_path / "own.log"
    config = file_config(own)
    config["loggers"]["gunicorn.access"] = {"handlers": ["own"]}
    setup_logging(log_settings(errorlog=str(path), logconfig_dict=config))
    handlers = error_log.handlers
    setup_logging(log_settings(errorlog=str(path)))
    error_log.info("hello")
    assert own.read_text() == ""
    assert "hello" in path.read_text()
    assert not error_log_module.user_handles_access_log()
    for handler in handlers:
        handler.close()


def test_our_own_name_wins_over_gunicorns(tmp_path):
    own = tmp_path / "own.log"
    config = file_config(own)
    config["loggers"] = {
        "servo.error": {"handlers": ["own"], "level": "ERROR"},
        "gunicorn.error": {"handlers": ["own"], "level": "DEBUG"},
    }
    setup_logging(log_settings(logconfig_dict=config))
    assert error_log.level == logging.ERROR


def test_a_configuration_without_our_loggers_leaves_them_as_they_are(path):
    config = {"version": 1, "disable_existing_loggers": True, "loggers": {"app": {"level": "INFO"}}}
    setup_logging(log_settings(errorlog=str(path), logconfig_dict=config))
    error_log.info("hello")
    assert "hello" in path.read_text()
    assert not error_log.propagate


def test_an_access_logger_of_the_users_is_noticed(tmp_path):
    config = file_config(tmp_path / "own.log")
    config["loggers"] = {"gunicorn.access": {"handlers": ["own"]}}
    setup_logging(log_settings(logconfig_dict=config))
    assert error_log_module.user_handles_access_log()


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        (
            {"logconfig": "/missing/log.ini"},
            r"logconfig /missing/log\.ini can.t be read: No such file",
        ),
        ({"logconfig_json": "/missing/log.json"}, "logconfig_json /missing.*No such file"),
        (
            {"logconfig_dict": {"version": 1, "handlers": {"h": {"class": "no.such.Handler"}}}},
            r"logconfig_dict: Unable to configure handler 'h' \(.*",
        ),
        ({"logconfig_dict": {"version": 2}}, "logconfig_dict: Unsupported version: 2"),
    ],
)
def test_a_bad_configuration_is_named(changes, reason):
    with pytest.raises(ConfigError, match=reason):
        setup_logging(log_settings(**changes))


def test_a_check_of_a_configuration():
    with pytest.raises(ConfigError, match="logconfig_dict: Unsupported version: 2"):
        check_logging(log_settings(logconfig_dict={"version": 2}))
    with pytest.raises(ConfigError, match=r"logconfig_dict: .*/nonexist/own"):
        check_logging(log_settings(logconfig_dict=file_config("/nonexist/own")))


def test_files_of_the_users_configuration_follow_no_link_of_others(tmp_path):
    shared = tmp_path / "shared"
    shared.mkdir()
    shared.chmod(0o777)
    secret = tmp_path / "secret"
    secret.write_text("keep")
    path = shared / "own.log"
    (shared / "link.log").symlink_to(secret)
    for kind in ("logging.FileHandler", "logging.handlers.RotatingFileHandler"):
        with pytest.raises(ConfigError, match="symbolic link in a directory that other users"):
            setup_logging(log_settings(logconfig_dict=file_config(shared / "link.log", kind)))
        setup_logging(log_settings(logconfig_dict=file_config(path, kind)))
        logging.getLogger("servo.error").warning("one")
        path.unlink()
        path.symlink_to(secret)
        reopen_logs()
        logging.getLogger("servo.error").warning("two")
        path.unlink()
    assert secret.read_text() == "keep"


def test_a_file_handler_that_truncates_its_file(tmp_path):
    path = tmp_path / "own.log"
    path.write_text("old")
    config = file_config(path)
    config["handlers"]["own"] |= {"mode": "w", "encoding": "utf-8"}
    setup_logging(log_settings(logconfig_dict=config))
    logging.getLogger("servo.error").warning("é")
    assert path.read_text("utf-8").endswith("é\n")
    assert "old" not in path.read_text("utf-8")


UVICORNS = {
    "version": 1,
    "disable_existing_loggers": False,
    "formatters": {
        "default": {
            "()": "uvicorn.logging.DefaultFormatter",
            "fmt": "%(levelprefix)s %(message)s",
            "use_colors": None,
        },
        "access": {
            "()": "uvicorn.logging.AccessFormatter",
            "fmt": '%(levelprefix)s %(client_addr)s - "%(request_line)s" %(status_code)s',
        },
    },
    "handlers": {
        "default": {"formatter": "default", "class": "logging.FileHandler", "filename": "DEFAULT"},
        "access": {"formatter": "access", "class": "logging.FileHandler", "filename": "ACCESS"},
    },
    "loggers": {
        "uvicorn": {"handlers": ["default"], "level": "INFO", "propagate": False},
        "uvicorn.error": {"level": "INFO"},
        "uvicorn.access": {"handlers": ["access"], "level": "INFO", "propagate": False},
    },
}


@pytest.mark.parametrize("left_out", [None, "uvicorn.error"])
def test_uvicorns_own_configuration_works_without_uvicorn(tmp_path, left_out):
    config = {**UVICORNS, "loggers": {**UVICORNS["loggers"]}}
    config["loggers"].pop(left_out, None)
    text = json.dumps(config).replace("DEFAULT", str(tmp_path / "default"))
    (tmp_path / "log.json").write_text(text.replace("ACCESS", str(tmp_path / "access")))
    changes = {"errorlog": str(tmp_path / "error"), "logconfig": str(tmp_path / "log.json")}
    setup_logging(log_settings(**changes))
    error_log.info("one %s", "line")
    logging.getLogger("servo.access").info("a request")
    assert (tmp_path / "default").read_text() == "INFO: one line\n"
    assert (tmp_path / "access").read_text() == "INFO: a request\n"
    assert (tmp_path / "error").read_text() == ""
    assert error_log_module.user_handles_access_log()

    setup_logging(log_settings(errorlog=str(tmp_path / "error")))
    error_log.info("another")
    assert (tmp_path / "default").read_text() == "INFO: one line\n"
    assert "another" in (tmp_path / "error").read_text()


@pytest.mark.parametrize("disable", [True, False])
@pytest.mark.parametrize("ours", [{}, {"servo.error": {"level": "INFO"}}, {"servo": {}}])
def test_no_configuration_disables_our_loggers(tmp_path, disable, ours):
    apps = logging.getLogger("shop.error")
    config = {
        "version": 1,
        "disable_existing_loggers": disable,
        "handlers": {"own": {"class": "logging.FileHandler", "filename": str(tmp_path / "own")}},
        "root": {"level": "INFO", "handlers": ["own"]},
        "loggers": ours,
    }
    (tmp_path / "log.json").write_text(json.dumps(config))
    try:
        setup_logging(
            log_settings(errorlog=str(tmp_path / "error"), logconfig=str(tmp_path / "log.json"))
        )
        error_log.info("a line")
        assert apps.disabled is disable
    finally:
        apps.disabled = False
    said = (tmp_path / "error").read_text(), (tmp_path / "own").read_text()
    assert sum("a line" in text for text in said) == 1
