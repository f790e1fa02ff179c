"""The access log: gunicorn's atoms, JSON, and clients that try to forge lines."""

from __future__ import annotations

import base64
import json
import logging
import os
import time
from types import SimpleNamespace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from servo.errors import ConfigError
from servo.logs import access_log, error_log
from servo.logs.access_log import AccessLog
from servo.logs.log_file import LogFile

DEFAULT = '%(h)s %(l)s %(u)s %(t)s "%(r)s" %(s)s %(b)s "%(f)s" "%(a)s"'
NOW = 1_795_464_600.5

REQUEST = {
    "remote": "192.0.2.1",
    "method": "GET",
    "target": b"/a/b%20c?x=1&y=2",
    "version": "1.1",
    "status": 200,
    "sent": 1234,
    "duration_ns": 2_034_567_890,
    "headers": [
        (b"host", b"example.com"),
        (b"user-agent", b"curl/8.0"),
        (b"referer", b"http://example.com/"),
        (b"authorization", b"Basic " + base64.b64encode(b"ann:secret")),
        (b"x-request-id", b"abc"),
    ],
    "response_headers": [(b"Content-Type", b"text/plain"), (b"X-Cache", b"HIT")],
    "environ": {"REMOTE_USER": "bob", "wsgi.threads": 4},
}


class Sink(LogFile):
    """A file that keeps each write."""

    def __init__(self) -> None:
        super().__init__(None, 1)
        self.writes: list[bytes] = []

    def write(self, data: bytes) -> None:
        self.writes.append(data)


def make(form: str = DEFAULT) -> tuple[AccessLog, Sink]:
    sink = Sink()
    settings = SimpleNamespace(accesslog="-", access_log_format=form)
    return AccessLog(settings, sink, now=lambda: NOW), sink


def line_of(form: str, **changes: object) -> str:
    log_, sink = make(form)
    log_.record(**(REQUEST | changes))
    log_.flush()
    (data,) = sink.writes
    return data.decode()


def test_the_default_format():
    stamp = time.strftime("[%d/%b/%Y:%H:%M:%S %z]", time.localtime(NOW))
    assert line_of(DEFAULT) == (
        f'192.0.2.1 - ann {stamp} "GET /a/b%20c?x=1&y=2 HTTP/1.1" 200 1234 '
        '"http://example.com/" "curl/8.0"\n'
    )


@pytest.mark.parametrize(
    ("form", "text"),
    [
        ("%(m)s %(U)s %(q)s %(H)s", "GET /a/b%20c x=1&y=2 HTTP/1.1"),
        ("%(B)s %(b)s", "1234 1234"),
        ("%(T)s %(M)s %(D)s %(L)s", "2 2034 2034567 2.034567"),
        ("%(D)d|%(s)5d|%(M)-6d|%(h)12s", "2034567|  200|2034  |   192.0.2.1"),
        ("%(p)s", "<PID>"),
        ("%({X-Request-Id}i)s %({absent}i)s", "abc -"),
        ("%({content-type}o)s %({x-cache}o)s %({absent}o)s", "text/plain HIT -"),
        ("%({REMOTE_USER}e)s %({remote_user}e)s %({wsgi.threads}e)s %({X}e)s", "bob bob 4 -"),
        ("100%% %(s)s", "100% 200"),
        ("%(unknown)s %({x}z)s", "- -"),
        ("no atoms", "no atoms"),
        ("\u00fcber %(s)s", "\u00fcber 200"),
        ('%({it\'s "{quoted}"}i)s', "-"),
    ],
)
def test_atoms(form, text):
    assert line_of(form) == text.replace("PID", str(os.getpid())) + "\n"


def test_a_missing_value_is_a_dash():
    assert line_of('%(u)s "%(f)s" "%(a)s" %(b)s', headers=[], sent=None) == '- "-" "-" -\n'
    assert line_of("%(U)s|%(q)s|%({a}e)s", target="/text", environ=None) == "/text||-\n"


def test_response_headers_may_be_text_and_a_repeated_one_is_the_last():
    headers = [("X-A", "1"), ("x-a", "2")]
    assert line_of("%({x-a}o)s", response_headers=headers) == "2\n"


@pytest.mark.parametrize(
    ("value", "user"),
    [
        (b"basic " + base64.b64encode(b"ann:x:y"), "ann"),
        (b"Basic " + base64.b64encode(b'a"\n:x'), r"a\x22\x0a"),
        (b"Basic " + base64.b64encode(b":x"), "-"),
        (b"Basic ???", "-"),
        (b"Basic", "-"),
        (b"Bearer abc", "-"),
        (b"", "-"),
    ],
)
def test_the_user_of_basic_credentials(value, user):
    assert line_of("%(u)s", headers=[(b"authorization", value)]) == f"{user}\n"


@pytest.mark.parametrize("form", ["%(h)", "%(h)s %", "%s", "%(h)d", "%(s)s %*d", "%(h)y"])
def test_a_bad_format_is_an_error_of_the_configuration(form):
    with pytest.raises(ConfigError, match="access_log_format"):
        make(form)


def test_json():
    values = json.loads(line_of("json"))
    assert values.pop("time").startswith("20")
    assert values == {
        "pid": os.getpid(),
        "remote": "192.0.2.1",
        "user": "ann",
        "method": "GET",
        "target": "/a/b%20c?x=1&y=2",
        "protocol": "HTTP/1.1",
        "status": 200,
        "bytes": 1234,
        "duration_us": 2034567,
        "referer": "http://example.com/",
        "user_agent": "curl/8.0",
    }
    bare = json.loads(line_of("json", headers=[], sent=None))
    assert bare["user"] is bare["referer"] is bare["user_agent"] is None
    assert bare["bytes"] == 0


def test_the_time_is_renewed_each_second():
    now = [NOW]
    sink = Sink()
    settings = SimpleNamespace(accesslog="-", access_log_format="%(t)s")
    log_ = AccessLog(settings, sink, now=lambda: now[0])
    for moment in (NOW, NOW + 0.4, NOW + 1):
        now[0] = moment
        log_.record(**REQUEST)
    log_.flush()
    first, second, third = sink.writes[0].splitlines()
    assert first == second != third


# --- no client writes a line --------------------------------------------------------------------

octets = st.binary(max_size=40) | st.sampled_from(
    [b'a" 200 1 "-" "x"\n1.2.3.4 - -', b"\r\n", b"\x85\xa0", "\u2028".encode(), b"\\x22", b"%(h)s"]
)
strings = st.text(max_size=40) | octets.map(lambda data: data.decode("latin-1"))
forged = st.fixed_dictionaries(
    {
        "remote": strings,
        "method": strings,
        "target": octets | strings,
        "version": strings,
        "status": st.integers(100, 599),
        "sent": st.integers(0, 2**40) | st.none(),
        "duration_ns": st.integers(0, 2**50),
        "headers": st.lists(
            st.tuples(
                st.sampled_from([b"referer", b"user-agent", b"x-a"]) | octets,
                octets,
            )
            | st.tuples(
                st.just(b"authorization"),
                octets | octets.map(lambda data: b"Basic " + base64.b64encode(data)),
            ),
            max_size=5,
        ),
        "response_headers": st.lists(st.tuples(st.just(b"x-b") | octets, octets), max_size=3)
        | st.lists(st.tuples(st.just("X-B") | strings, strings), max_size=3),
        "environ": st.none() | st.dictionaries(st.just("X_C") | strings, strings | octets),
    }
)
ALL = " ".join(f'"%({atom})s"' for atom in [*access_log._ATOMS, "{x-a}i", "{x-b}o", "{X_C}e"])
LOGS = {form: make(form) for form in (DEFAULT, ALL, "json")}


@pytest.mark.parametrize("form", LOGS)
@given(request=forged)
def test_no_bytes_in_any_field_give_a_second_line_or_field(form, request):
    log_, sink = LOGS[form]
    sink.writes.clear()
    log_.record(**request)
    log_.flush()
    (data,) = sink.writes
    assert data.endswith(b"\n")
    line = data[:-1]
    assert all(32 <= byte < 127 for byte in line)
    if form == "json":
        values = json.loads(line)
        assert values["status"] == request["status"]
        json.dumps(values, ensure_ascii=False).encode()
    else:
        assert line.count(b'"') == form.count('"')


@settings(max_examples=40)
@given(request=forged)
def test_no_bytes_escape_through_the_users_logging_either(request):
    atoms = access_log._all_atoms(
        access_log._compile(
            None, list(access_log._ATOMS.values()), {**access_log._HELPERS, "apache": lambda: "now"}
        ),
        *(request[name.strip()] for name in access_log._ARGUMENTS.split(",")),
    )
    line = ALL % atoms
    assert line.isascii()
    assert line.isprintable()
    assert line.count('"') == ALL.count('"')


def test_the_cache_of_escaped_values_is_bounded():
    log_, _ = make()
    for number in range(3000):
        log_.record(**(REQUEST | {"headers": [(b"user-agent", b"agent %d" % number)]}))
    log_.record(**(REQUEST | {"headers": [(b"user-agent", b"x" * 60_000)]}))
    known = access_log._HELPERS["escaped"]
    assert len(known) <= 1024
    assert all(len(value) <= 512 for value in known)


# --- batches ------------------------------------------------------------------------------------


def test_lines_are_written_together():
    log_, sink = make("%(s)s")
    assert not log_.pending
    log_.flush()
    assert sink.writes == []
    for status in (200, 201, 202):
        log_.record(**(REQUEST | {"status": status}))
    assert log_.pending
    assert sink.writes == []
    log_.flush()
    assert sink.writes == [b"200\n201\n202\n"]
    assert not log_.pending


def test_a_large_batch_does_not_wait_for_the_flush():
    log_, sink = make("%(s)s" + "x" * 1000)
    for _ in range(40):
        log_.record(**REQUEST)
    assert len(sink.writes) == 1
    assert len(sink.writes[0]) >= access_log.BATCH_BYTES


def test_flush_due_writes_the_first_line_at_once_and_then_twice_a_second():
    log_, sink = make("%(s)s")
    start = 10**12
    for now, writes in ((0, 1), (1, 1), (400, 1), (500, 2), (999, 2), (1000, 3)):
        log_.record(**REQUEST)
        log_.flush_due(start + now * 1_000_000)
        assert len(sink.writes) == writes
    log_.flush()


def test_data_that_waits_for_a_slow_reader_is_pending(monkeypatch):
    log_, sink = make("%(s)s")
    monkeypatch.setattr(sink, "_pending", b"rest\n")
    assert log_.pending
    log_.flush()
    assert sink.writes == [b""]


def test_reopening_writes_the_batch_to_the_old_file(tmp_path):
    path = tmp_path / "access.log"
    settings = SimpleNamespace(accesslog=str(path), access_log_format="%(s)s")
    log_ = AccessLog(settings)
    log_.record(**REQUEST)
    path.rename(tmp_path / "access.1")
    log_.reopen()
    log_.record(**(REQUEST | {"status": 404}))
    log_.close()
    assert (tmp_path / "access.1").read_text() == "200\n"
    assert path.read_text() == "404\n"
    log_._file.close()


def test_without_a_destination_it_is_not_enabled():
    log_ = AccessLog(SimpleNamespace(accesslog=None, access_log_format=DEFAULT))
    assert not log_.enabled
    log_.flush()
    log_.reopen()
    log_.close()


def test_it_writes_to_the_file_that_setup_logging_opened(monkeypatch):
    sink = Sink()
    monkeypatch.setattr(error_log, "_logs", error_log._Logs(LogFile(None, 2), access=sink))
    log_ = AccessLog(SimpleNamespace(accesslog="/elsewhere", access_log_format="%(s)s"))
    assert log_.enabled
    log_.record(**REQUEST)
    log_.flush()
    assert sink.writes == [b"200\n"]


# --- through the user's logging -----------------------------------------------------------------


@pytest.fixture
def records(monkeypatch):
    """The records that a user's logging configuration gets of the access logger."""
    monkeypatch.setattr(
        error_log, "_logs", error_log._Logs(LogFile(None, 2), user_handles_access_log=True)
    )
    logger = logging.getLogger("servo.access")
    found = []
    handler = logging.Handler()
    handler.emit = found.append
    logger.addHandler(handler)
    monkeypatch.setattr(logger, "level", logging.INFO)
    monkeypatch.setattr(logger, "propagate", False)
    logger.manager._clear_cache()
    yield found
    logger.removeHandler(handler)
    logger.manager._clear_cache()


def test_a_logging_configuration_gets_gunicorns_records(records):
    form = '%(h)s "%(r)s" %(s)s %({User-Agent}i)s %({x-cache}o)s %({REMOTE_USER}e)s %({no}i)s %(z)s'
    log_ = AccessLog(SimpleNamespace(accesslog=None, access_log_format=form))
    assert log_.enabled
    log_.record(**REQUEST)
    (record,) = records
    assert record.getMessage() == (
        '192.0.2.1 "GET /a/b%20c?x=1&y=2 HTTP/1.1" 200 curl/8.0 HIT bob - -'
    )
    assert record.args["D"] == 2034567
    assert record.args["{host}i"] == "example.com"


def types_of(record):
    return {name: type(value) for name, value in record.args.items() if len(name) == 1}


def test_the_atoms_of_a_record_have_gunicorns_types(records):
    AccessLog(SimpleNamespace(accesslog=None, access_log_format="%(s)s")).record(**REQUEST)
    args = records[0].args
    assert (args["s"], args["b"], args["B"]) == ("200", "1234", 1234)
    numbers = dict.fromkeys("BTMD", int)
    assert types_of(records[0]) == dict.fromkeys("hlutrmUqHsbfaLp", str) | numbers


def test_an_unknown_length_is_a_dash_and_none_as_with_gunicorn(records):
    log_ = AccessLog(SimpleNamespace(accesslog=None, access_log_format="%(s)s"))
    log_.record(**{**REQUEST, "sent": None})
    log_.record(**{**REQUEST, "sent": 0})
    assert [(r.args["b"], r.args["B"]) for r in records] == [("-", None), ("0", 0)]


@pytest.mark.usefixtures("records")
def test_a_format_that_does_not_fit_the_atoms_is_refused():
    with pytest.raises(ConfigError, match="access_log_format"):
        AccessLog(SimpleNamespace(accesslog=None, access_log_format="%(s)d"))


def test_a_logging_configuration_gets_json_too(records):
    AccessLog(SimpleNamespace(accesslog=None, access_log_format="json")).record(**REQUEST)
    assert json.loads(records[0].getMessage())["status"] == 200


class Textless:
    def __str__(self):
        raise RuntimeError("no text")


# An application may have changed its environ and headers before the request is logged.
SPOILT = [
    {"environ": {"REMOTE_USER": Textless(), "x": Textless()}},
    {"response_headers": [(b"x-cache", b"HIT"), None]},
    {"headers": [(b"user-agent", [7])]},
    {"headers": [None]},
]


@pytest.mark.parametrize("spoilt", SPOILT)
def test_values_that_can_not_be_formatted_cost_only_their_line(spoilt, caplog):
    log_, sink = make("%(m)s %(a)s %({REMOTE_USER}e)s %({x-cache}o)s")
    log_.record(**(REQUEST | spoilt))
    assert "Can't write the access-log line of GET /a/b%20c?x=1&y=2" in caplog.text
    assert caplog.records[0].exc_info is not None
    log_.record(**REQUEST)
    log_.flush()
    assert sink.writes == [b"GET curl/8.0 bob HIT\n"]


@pytest.mark.parametrize("spoilt", SPOILT)
def test_nor_do_such_values_reach_the_users_logging(spoilt, records, caplog):
    log_ = AccessLog(SimpleNamespace(accesslog=None, access_log_format="%(m)s %(a)s"))
    log_.record(**(REQUEST | spoilt))
    assert "Can't write the access-log line" in caplog.text
    assert records == []


# --- filters and levels that applications set -----------------------------------------------------

FILTERS = {
    "uvicorn's arguments": lambda record: record.args[2] != "/a/b%20c?x=1&y=2",
    "all of uvicorn's arguments": lambda record: (
        [record.args[n] for n in range(5)] != ["192.0.2.1", "GET", "/a/b%20c?x=1&y=2", "1.1", 200]
    ),
    "gunicorn's atoms": lambda record: record.args["U"] != "/a/b%20c",
    "the message": lambda record: "GET /a/b%20c" not in record.getMessage(),
}


@pytest.mark.usefixtures("untouched_logging")
@pytest.mark.parametrize("logger", ["servo.access", "uvicorn.access"])
@pytest.mark.parametrize("rejects", FILTERS.values(), ids=FILTERS)
def test_an_application_filters_lines(logger, rejects):
    log, sink = make()
    logging.getLogger(logger).addFilter(rejects)
    log.follow_loggers()
    log.record(**REQUEST)
    log.record(**{**REQUEST, "target": b"/other"})
    log.flush()
    assert b"/other" in b"".join(sink.writes)
    assert b"/a/b" not in b"".join(sink.writes)
    logging.getLogger(logger).removeFilter(rejects)
    log.follow_loggers()
    log.record(**REQUEST)
    log.flush()
    assert b"/a/b" in b"".join(sink.writes)


@pytest.mark.usefixtures("untouched_logging")
def test_a_filter_with_json_lines():
    logging.getLogger("uvicorn.access").addFilter(lambda record: "/a/b" not in record.getMessage())
    log, sink = make("json")
    log.record(**REQUEST)
    log.record(**{**REQUEST, "target": b"/other"})
    log.flush()
    assert [json.loads(line)["target"] for line in sink.writes] == ["/other"]


@pytest.mark.usefixtures("untouched_logging")
@pytest.mark.parametrize("logger", ["servo.access", "uvicorn.access"])
def test_an_application_turns_the_lines_off(logger):
    logging.getLogger(logger).setLevel("WARNING")
    log, sink = make()
    log.record(**REQUEST)
    log.flush()
    assert sink.writes == []
