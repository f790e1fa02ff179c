"""The error log: its lines, its file, gunicorn's names for it, and exceptions that it catches."""

from __future__ import annotations

import json
import logging
import logging.config
import os
import re
import sys
import threading

import pytest
from hypothesis import given
from hypothesis import strategies as st
from log_settings import file_config, log_settings

from servo.errors import ConfigError
from servo.logs import error_log as error_log_module
from servo.logs.error_log import (
    JSONFormatter,
    TextFormatter,
    check_logging,
    safe,
    setup_logging,
)
from servo.logs.log_file import LogFile

pytestmark = pytest.mark.usefixtures("untouched_logging")

STAMP = r"\[\d{4}-\d\d-\d\d \d\d:\d\d:\d\d [+-]\d{4}\]"


@pytest.fixture
def path(tmp_path):
    return tmp_path / "error.log"


error_log = logging.getLogger("servo.error")


def test_a_line_is_gunicorns(path):
    setup_logging(log_settings(errorlog=str(path)))
    error_log.info("Listening at: %s", "http://127.0.0.1:8000")
    error_log.debug("not at this level")
    line = rf"{STAMP} \[{os.getpid()}\] \[INFO\] Listening at: http://127\.0\.0\.1:8000\n"
    assert re.fullmatch(line, path.read_text())


def test_a_traceback_follows_its_message(path):
    setup_logging(log_settings(errorlog=str(path)))
    try:
        raise ValueError("broken")
    except ValueError:
        error_log.exception("It failed")
    lines = path.read_text().splitlines()
    assert lines[0].endswith("[ERROR] It failed")
    assert lines[1] == "Traceback (most recent call last):"
    assert lines[-1] == "ValueError: broken"


def test_json_is_one_object_a_line(path):
    setup_logging(log_settings(errorlog=str(path), log_format="json"))
    error_log.warning("one\ntwo \u2028 %s", "three")
    try:
        raise ValueError("broken")
    except ValueError:
        error_log.exception("It failed")
    first, second = path.read_text().splitlines()
    values = json.loads(first)
    assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3}[+-]\d\d:\d\d", values.pop("time"))
    assert values == {
        "level": "WARNING",
        "pid": os.getpid(),
        "logger": "servo.error",
        "message": "one\ntwo \u2028 three",
    }
    assert json.loads(second)["exc"].endswith("ValueError: broken")


def test_the_level_is_coloured_at_a_terminal_only(monkeypatch):
    main, terminal = os.openpty()
    file = LogFile(None, terminal)
    monkeypatch.delenv("NO_COLOR", raising=False)
    monkeypatch.setenv("TERM", "xterm")
    record = logging.makeLogRecord({"levelno": logging.INFO, "levelname": "INFO", "msg": "m"})
    assert "[\x1b[32mINFO\x1b[0m] m" in error_log_module._formatter("text", file).format(record)
    monkeypatch.setenv("NO_COLOR", "1")
    assert "\x1b" not in error_log_module._formatter("text", file).format(record)
    monkeypatch.delenv("NO_COLOR")
    monkeypatch.setenv("TERM", "dumb")
    assert "\x1b" not in error_log_module._formatter("text", file).format(record)
    os.close(main)
    os.close(terminal)


def test_the_stamp_is_the_records_own_second():
    formatter = TextFormatter()
    lines = [
        formatter.format(logging.makeLogRecord({"created": created, "msg": "m"}))
        for created in (1_700_000_000.9, 1_700_000_000.1, 1_700_000_001.0)
    ]
    assert lines[0] == lines[1] != lines[2]


def test_stack_info_is_kept():
    record = logging.makeLogRecord({"msg": "m", "sinfo": None, "stack_info": "Stack (most recent"})
    assert TextFormatter().format(record).endswith("m\nStack (most recent")
    assert json.loads(JSONFormatter().format(record))["exc"] == "Stack (most recent"


@pytest.mark.parametrize("level", ["debug", "INFO", "warning", "error", "critical"])
def test_levels(level):
    setup_logging(log_settings(loglevel=level))
    assert error_log.level == getattr(logging, level.upper())


def test_logs_that_can_not_be_opened_are_configuration_errors(tmp_path):
    with pytest.raises(ConfigError, match="loud"):
        setup_logging(log_settings(loglevel="loud"))
    with pytest.raises(ConfigError, match="missing"):
        setup_logging(log_settings(errorlog=str(tmp_path / "missing" / "log")))
    before = len(os.listdir("/proc/self/fd"))
    with pytest.raises(ConfigError, match="missing"):
        setup_logging(
            log_settings(
                errorlog=str(tmp_path / "log"), accesslog=str(tmp_path / "missing" / "log")
            )
        )
    assert len(os.listdir("/proc/self/fd")) == before
    assert error_log_module.crash_fd() == 2


def test_setting_up_again_changes_the_file_and_keeps_one_handler(tmp_path):
    one, two = tmp_path / "one", tmp_path / "two"
    setup_logging(log_settings(errorlog=str(one)))
    number = error_log_module.crash_fd()
    setup_logging(log_settings(errorlog=str(one), loglevel="debug"))
    assert error_log_module.crash_fd() == number
    error_log.debug("first")
    setup_logging(log_settings(errorlog=str(two)))
    error_log.info("second")
    assert len(error_log.handlers) == 1
    assert "first" in one.read_text()
    assert "second" not in one.read_text()
    assert "second" in two.read_text()
    # faulthandler may write to this descriptor.
    os.close(number)


def reopened():
    """The outcome of `reopen_logs` without pytest's own handler, whose file is /dev/null."""
    outcome = error_log_module.reopen_logs()
    outcome.pop(os.devnull, None)
    return outcome


def test_reopening_follows_a_rotation_on_the_same_descriptor(tmp_path, path):
    access = tmp_path / "access.log"
    setup_logging(log_settings(errorlog=str(path), accesslog=str(access)))
    number = error_log_module.crash_fd()
    error_log.info("before")
    path.rename(tmp_path / "error.1")
    access.rename(tmp_path / "access.1")
    assert reopened() == {str(path): "", str(access): ""}
    error_log.info("after")
    assert error_log_module.crash_fd() == number
    assert "before" in (tmp_path / "error.1").read_text()
    assert "after" in path.read_text()
    assert access.exists()


def test_a_log_that_can_not_be_reopened_says_so_in_the_old_file(tmp_path):
    directory = tmp_path / "logs"
    directory.mkdir()
    setup_logging(log_settings(errorlog=str(directory / "log")))
    directory.rename(tmp_path / "moved")
    (failure,) = reopened().values()
    assert failure.startswith(f"can't open the log file {directory / 'log'}: ")
    assert "The old log stays in use: can't open" in (tmp_path / "moved" / "log").read_text()


def test_a_users_file_handler_is_reopened_too(tmp_path):
    path = tmp_path / "app.log"
    handler = logging.FileHandler(path)
    logger = logging.getLogger("servo.error")
    setup_logging(log_settings(errorlog=str(tmp_path / "error.log")))
    logger.addHandler(handler)
    logger.info("before")
    path.rename(tmp_path / "app.1")
    assert reopened() == {str(tmp_path / "error.log"): "", str(path): ""}
    logger.info("after")
    assert "after" in path.read_text()
    assert "after" not in (tmp_path / "app.1").read_text()


def test_logs_without_a_file_are_not_reopened():
    setup_logging(log_settings(accesslog="-"))
    assert reopened() == {}


def test_a_users_file_handler_that_can_not_be_reopened(tmp_path):
    directory = tmp_path / "logs"
    directory.mkdir()
    handler = logging.FileHandler(directory / "app.log")
    setup_logging(log_settings())
    logging.getLogger("servo.error").addHandler(handler)
    directory.rename(tmp_path / "moved")
    (failure,) = reopened().values()
    assert "No such file or directory" in failure


def test_capture_output_follows_the_file_through_a_rotation(path):
    pid = os.fork()
    if pid == 0:
        setup_logging(log_settings(errorlog=str(path), capture_output=True))
        os.write(1, b"printed\n")
        path.rename(path.with_suffix(".1"))
        error_log_module.reopen_logs()
        os.write(2, b"printed again\n")
        os._exit(0)
    assert os.waitpid(pid, 0)[1] == 0
    assert path.with_suffix(".1").read_text() == "printed\n"
    assert path.read_text() == "printed again\n"


def test_the_files_go_to_the_workers_user_now_and_when_reopened(path, monkeypatch):
    calls = []
    monkeypatch.setattr(os, "fchown", lambda _, *ids: calls.append(ids))
    setup_logging(log_settings(errorlog=str(path)))
    error_log_module.chown_logs(12, None)
    monkeypatch.setattr(os, "geteuid", lambda: 0)
    error_log_module.reopen_logs()
    assert calls == [(12, -1), (12, -1)]


def test_a_failed_change_of_owner_is_a_warning(path, monkeypatch):
    def refuse(*_):
        raise PermissionError(1, "Operation not permitted")

    monkeypatch.setattr(os, "fchown", refuse)
    setup_logging(log_settings(errorlog=str(path)))
    error_log_module.chown_logs(12, 34)
    assert "who may be unable to reopen it" in path.read_text()


def test_standard_devices_are_the_descriptors_behind_them():
    setup_logging(log_settings(errorlog="/dev/stderr", accesslog="/dev/stdout"))
    assert error_log_module.crash_fd() == 2
    assert error_log_module.access_file().fd == 1


def test_a_record_that_can_not_be_formatted_does_not_raise(path, capsys):
    setup_logging(log_settings(errorlog=str(path)))
    error_log.info("%d", "no number")
    error_log.info("still here \udc80")
    assert "TypeError" in capsys.readouterr().err
    assert "still here \\udc80" in path.read_text()


# --- gunicorn's names and configurations --------------------------------------------------------


def test_gunicorns_logger_is_ours(path):
    setup_logging(log_settings(errorlog=str(path)))
    assert logging.getLogger("gunicorn.error") is error_log
    assert logging.getLogger("gunicorn.access") is logging.getLogger("servo.access")
    logging.getLogger("gunicorn.error.child").info("from below")
    assert "from below" in path.read_text()


def test_a_gunicorn_logger_that_an_app_already_holds_writes_to_our_log(path):
    logging.Logger.manager.loggerDict.pop("gunicorn.error", None)
    held = logging.getLogger("gunicorn.error")
    setup_logging(log_settings(errorlog=str(path)))
    held.info("from an old friend")
    assert "from an old friend" in path.read_text()


@pytest.mark.parametrize("name", ["uvicorn", "uvicorn.error", "uvicorn.asgi"])
def test_uvicorns_loggers_write_to_our_log(path, name):
    setup_logging(log_settings(errorlog=str(path)))
    logging.getLogger(name).info("from an app for uvicorn")
    assert "[INFO] from an app for uvicorn" in path.read_text()


def test_an_app_that_configures_uvicorns_loggers_leaves_ours_alone(path, tmp_path):
    setup_logging(log_settings(errorlog=str(path)))
    handler = {"class": "logging.FileHandler", "filename": str(tmp_path / "own")}
    logging.config.dictConfig(
        {
            "version": 1,
            "disable_existing_loggers": False,
            "handlers": {"own": handler},
            "loggers": {
                "uvicorn": {"handlers": ["own"], "level": "INFO", "propagate": False},
                "uvicorn.error": {"level": "INFO"},
                "uvicorn.access": {"handlers": ["own"], "level": "INFO", "propagate": False},
            },
        }
    )
    error_log.info("a worker's own line")
    logging.getLogger("uvicorn").info("the app's")
    assert "a worker's own line" in path.read_text()
    assert (tmp_path / "own").read_text() == "the app's\n"


def test_broken_files_are_named(tmp_path):
    (tmp_path / "log.ini").write_text("no section")
    (tmp_path / "log.json").write_text("{")
    for changes in (
        {"logconfig": str(tmp_path / "log.ini")},
        {"logconfig_json": str(tmp_path / "log.json")},
    ):
        with pytest.raises(ConfigError, match=re.escape(str(tmp_path))):
            setup_logging(log_settings(**changes))


def test_asyncios_messages_are_in_the_error_log(path, monkeypatch):
    monkeypatch.setattr(logging.root, "handlers", [])  # remove pytest's handlers: a server has none
    seen = []
    error_log_module.set_tap(seen.append)
    setup_logging(log_settings(errorlog=str(path)))
    setup_logging(log_settings(errorlog=str(path)))
    logging.getLogger("asyncio").error("Task exception was never retrieved")
    error_log_module.set_tap(None)
    (line,) = path.read_text().splitlines()
    assert line.endswith("[ERROR] Task exception was never retrieved")
    assert len(seen) == 1
    setup_logging(log_settings(errorlog=str(path), loglevel="critical"))
    logging.getLogger("asyncio").error("not at this level")
    assert path.read_text().count("\n") == 1


def test_asyncios_messages_are_not_there_twice(path, tmp_path):
    own = tmp_path / "own.log"
    config = file_config(own)
    config["root"] = {"handlers": ["own"]}
    setup_logging(log_settings(errorlog=str(path), logconfig_dict=config))
    logging.getLogger("asyncio").error("a lost task")
    assert own.read_text() == "a lost task\n"
    assert path.read_text() == ""


def test_an_exception_of_a_thread_is_in_the_error_log(path):
    setup_logging(log_settings(errorlog=str(path)))

    def fail(error):
        raise error

    for error in (ValueError("broken"), SystemExit(1)):
        thread = threading.Thread(target=fail, args=(error,), name="mail-sender")
        thread.start()
        thread.join()
    lines = path.read_text().splitlines()
    assert lines[0].endswith("[ERROR] Uncaught exception in thread mail-sender")
    assert lines[-1] == "ValueError: broken"


def test_an_excepthook_of_the_application_stays(path, monkeypatch):
    def own(args):
        raise AssertionError

    monkeypatch.setattr(threading, "excepthook", own)
    setup_logging(log_settings(errorlog=str(path)))
    assert threading.excepthook is own


# --- a trial --------------------------------------------------------------------------------------


@pytest.mark.parametrize("which", ["errorlog", "accesslog"])
def test_a_check_finds_files_that_can_not_be_opened(which):
    with pytest.raises(ConfigError, match=r"log file /nonexist/x: No such file or directory"):
        check_logging(log_settings(**{which: "/nonexist/x"}))
    check_logging(log_settings(**{which: "-"}))
    check_logging(log_settings(**{which: "/dev/stderr"}))


def test_a_check_leaves_every_file_as_it_was(tmp_path, monkeypatch):
    (tmp_path / "old.log").write_text("old lines\n")
    (tmp_path / "link.log").symlink_to(tmp_path / "nowhere.log")
    os.mkfifo(tmp_path / "pipe")
    before = {entry.name: entry.lstat() for entry in tmp_path.iterdir()}
    handler = {"class": "logging.handlers.WatchedFileHandler", "filename": str(tmp_path / "w")}
    config = {
        "handlers": {
            "cut": {"class": "logging.FileHandler", "filename": str(tmp_path / "old.log"),
                    "mode": "w"},
            "late": {**handler, "delay": True},
            "watched": handler,
        },
        "loggers": {"shop": {"handlers": ["cut", "late", "watched"]}},
    }  # fmt: skip
    for errorlog in ("old.log", "new.log", "link.log", "pipe"):
        check_logging(log_settings(errorlog=str(tmp_path / errorlog), logconfig_dict=config))
        logging.getLogger("shop").error("the application is imported")
        error_log.error("not here either")
    assert {entry.name: entry.lstat() for entry in tmp_path.iterdir()} == before


# --- safe ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("plain /path?x=1", "plain /path?x=1"),
        ('"\\\n\r\t\0\x7f', r"\x22\x5c\x0a\x0d\x09\x00\x7f"),
        (b"\x1b[31m\xff", r"\x1b[31m\xff"),
        ("\u00e9", r"\xe9"),
        ("\u20ac", r"\xe2\x82\xac"),
        ("\udcff", r"\xed\xb3\xbf"),
    ],
)
def test_safe(text, shown):
    assert safe(text) == shown


@given(st.text() | st.binary())
def test_safe_text_is_one_printable_line_without_quotes(text):
    shown = safe(text)
    assert shown.isascii()
    assert shown == "" or shown.isprintable()
    assert '"' not in shown
    assert len(shown.splitlines()) <= 1


def test_stdout_is_not_needed(monkeypatch, path):
    monkeypatch.setattr(sys, "stdout", None)
    setup_logging(log_settings(errorlog=str(path)))
    logging.getLogger("servo.error").warning("heard all the same")
    assert "heard all the same" in path.read_text()


# --- taps and events --------------------------------------------------------------------------


def test_a_tap_gets_every_record_whatever_the_users_configuration(tmp_path):
    seen = []
    error_log_module.set_tap(lambda record: seen.append(error_log_module.message_of(record)))
    try:
        user = {"version": 1, "loggers": {"gunicorn.error": {"handlers": ["console"]}}}
        for configuration in ({}, user, {}):
            setup_logging(
                log_settings(errorlog=str(tmp_path / "log"), logconfig_dict=configuration)
            )
            logging.getLogger("servo.error").info("one %s", "line")
            logging.getLogger("servo.error").debug("not of this level")
    finally:
        error_log_module.set_tap(None)
    logging.getLogger("servo.error").info("nobody hears this")
    assert seen == ["one line"] * 3


def test_the_text_of_a_record_has_its_traceback_and_survives_a_bad_one():
    try:
        raise RuntimeError("it broke")
    except RuntimeError:
        information = sys.exc_info()
    record = logging.LogRecord("servo.error", 40, "a.py", 1, "no: %s", ("x",), information)
    text = error_log_module.message_of(record)
    assert text.startswith("no: x\nTraceback")
    assert text.endswith("RuntimeError: it broke")
    bad = logging.LogRecord("servo.error", 40, "a.py", 1, "%d of %d", ("x",), None)
    assert error_log_module.message_of(bad) == "%d of %d"


def test_an_event_is_a_field_of_its_own_in_json_only():
    record = logging.LogRecord("servo.error", 20, "a.py", 1, "worker 1 is ready", (), None)
    record.event = {"name": "ready", "slot": 1}
    assert json.loads(JSONFormatter().format(record))["event"] == {"name": "ready", "slot": 1}
    assert "slot" not in TextFormatter().format(record)
