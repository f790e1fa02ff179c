"""The flags of uvicorn, hypercorn and granian, each turned into Servo's settings.

A team that moves to Servo keeps its command line: `uvicorn main:app --host 0.0.0.0 --port 80` works
with `servo` in its place. The tables below have every flag of uvicorn and granian, and those of
hypercorn that gunicorn does not have. A flag is one of these:

* another name of a setting, or a value of one (`_RENAMED`, `_VALUES`, `_TURNED`)
* a request for what Servo does anyway (`_USUAL`)
* without counterpart, and harmless to leave out: a warning names it (`_IGNORED`)
* without counterpart, and the server would not do what its user relies on: an error (`_REFUSED`)

All flags without counterpart are reported together, with the command line to type instead.

No flag makes Servo trust more than its own flags say. `--proxy-headers`, for example, changes
nothing: `forwarded_allow_ips` and `forwarded_fields` decide.
"""

from __future__ import annotations

import re
import shlex
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from servo.settings.gunicorn_compat import FOREIGN
from servo.settings.peers import peer_of
from servo.settings.schema import SETTINGS

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Mapping

    from servo.settings.setting import Setting

# Flags with the same argument as one of our settings.
_RENAMED = {
    "--app-dir": "pythonpath",
    "--working-dir": "chdir",
    "--url-path-prefix": "root_path",
    "--blocking-threads": "threads",
    "--backpressure": "worker_connections",
    "--limit-max-requests": "max_requests",
    "--limit-max-requests-jitter": "max_requests_jitter",
    "--workers-lifetime": "max_lifetime",
    "--timeout-keep-alive": "keepalive",
    "--timeout-graceful-shutdown": "graceful_timeout",
    "--timeout-worker-healthcheck": "timeout",
    "--workers-kill-timeout": "graceful_timeout",
    "--h11-max-incomplete-event-size": "limit_request_head_size",
    "--http1-buffer-size": "limit_request_head_size",
    "--http2-initial-stream-window-size": "http2_initial_window_size",
    "--http2-max-headers-size": "http2_max_header_list_size",
    "--ws-max-size": "websocket_max_message_size",
    "--ws-max-queue": "websocket_max_queue",
    "--ws-ping-interval": "websocket_ping_interval",
    "--ws-ping-timeout": "websocket_ping_timeout",
    "--ws-per-message-deflate": "websocket_per_message_deflate",
    "--ssl-certfile": "certfile",
    "--ssl-certificate": "certfile",
    "--ssl-keyfile": "keyfile",
    "--ssl-ca-certs": "ca_certs",
    "--ssl-ca": "ca_certs",
    "--ssl-cert-reqs": "cert_reqs",
    "--verify-mode": "cert_reqs",
    "--ssl-ciphers": "ciphers",
    "--error-log": "errorlog",
    "--process-name": "proc_name",
    "--pid-file": "pidfile",
    "--reload-paths": "reload_dirs",
    "--reload-ignore-dirs": "reload_exclude",
    "--reload-ignore-paths": "reload_exclude",
}
# Flags without argument that mean one value of a setting.
_VALUES: dict[str, tuple[str, Any]] = {
    "--access-log": ("accesslog", "-"),
    "--no-access-log": ("accesslog", ""),
    "--no-proxy-headers": ("forwarded_fields", []),
    "--no-ws": ("websocket", False),
    "--http2": ("http_protocols", "h2,h1"),
    "--no-http1-keep-alive": ("keepalive", "0"),
    "--ssl-client-verify": ("cert_reqs", "required"),
    "--no-ssl-client-verify": ("cert_reqs", "none"),
    "--debug": ("loglevel", "debug"),
    "--no-log": ("errorlog", "/dev/null"),
}
# Flags without argument that ask for what Servo does anyway.
_USUAL = """
    --proxy-headers --log --http1-keep-alive --reset-contextvars --no-factory --no-metrics
    --no-http2-adaptive-window --no-http1-pipeline-flush --respawn-failed-workers
    --reload-ignore-worker-failure
""".split()  # noqa: SIM905  a long list of names is easier to read in lines

# flag -> whether it takes an argument. `PEERS` has the reason, and what to do instead.
_IGNORED = {
    "--reload-delay": True,
    "--use-colors": False,
    "--no-use-colors": False,
    "--quic-bind": True,
    "--blocking-threads-idle-timeout": True,
    "--runtime-threads": True,
    "--runtime-blocking-threads": True,
    "--runtime-mode": True,
    "--task-impl": True,
    "--http1-pipeline-flush": False,
    "--http2-adaptive-window": False,
    "--http2-initial-connection-window-size": True,
    "--http2-keep-alive-interval": True,
    "--http2-keep-alive-timeout": True,
    "--http2-max-send-buffer-size": True,
    "--no-respawn-failed-workers": False,
    "--respawn-interval": True,
    "--rss-sample-interval": True,
    "--rss-samples": True,
    "--metrics-scrape-interval": True,
    "--reload-ignore-patterns": True,
    "--reload-tick": True,
    "--no-reload-ignore-worker-failure": False,
    "--static-path-route": True,
    "--static-path-dir-to-file": True,
    "--static-path-expires": True,
}
# The same. Without these, requests would get wrong answers, or get answers that they must not get.
_REFUSED = {
    "--insecure-bind": True,
    "--keyfile-password": True,
    "--server-name": True,
    "--ssl-crl": True,
    "--ssl-keyfile-password": True,
    "--static-path-mount": True,
}
# Flags whose arguments are added up.
_MANY = frozenset(
    """
    --env-files --insecure-bind --quic-bind --server-name --reload-paths
    --reload-ignore-dirs --reload-ignore-paths --reload-ignore-patterns --ssl-crl
    --static-path-route --static-path-mount
    """.split()  # noqa: SIM905
)

_INTERFACE = re.compile(r"(asgi|wsgi):([^:]+:.*)")
_DEFAULT_HOST, _DEFAULT_PORT = "127.0.0.1", "8000"
# granian's fields of an access log line, and gunicorn's.
_ATOMS = {
    "addr": "h",
    "time": "t",
    "dt_ms": "M",
    "status": "s",
    "path": "U",
    "query_string": "q",
    "method": "m",
    "protocol": "H",
}
_FLAG = re.compile(r"--[a-z0-9-]+")
_ATOM = re.compile(r"%\((\w+)\)[-+ #0]*\d*(?:\.\d+)?[sdfr]")


class _NoCounterpartError(ValueError):
    """Raised for a value that has no counterpart. The text says what to do instead."""


@dataclass
class Translation:
    """The flags of a command line as settings.

    values     setting or gunicorn's other setting -> value, as from our own flags
    sources    setting -> the flag that has set it, unless that is the setting's own
    ignored    (flag, advice): flags without counterpart
    refused    (flag, advice): flags without which the server must not start
    """

    values: dict[str, Any]
    sources: dict[str, str] = field(default_factory=dict)
    ignored: list[tuple[str, str]] = field(default_factory=list)
    refused: list[tuple[str, str]] = field(default_factory=list)

    def report(self, origin: str) -> str:
        """The warning about all ignored flags.

        origin   where the flags come from, as in the settings' sources; "flag": the command line
        """
        text = f"ignoring what has no counterpart here: {_listed(self.ignored)}"
        if origin == "flag":
            return f"{text}. The command line without it: {self.command_line()}"
        return f"{text} ({origin.rstrip(',')})"

    def command_line(self) -> str:
        """The command line with Servo's own flags, and without those that have no counterpart."""
        words = ["servo"]
        app = self.values.get("app")
        if isinstance(app, str):
            words.append(app)
        for name, value in self.values.items():
            if name in SETTINGS and name != "app":
                words += _typed(SETTINGS[name], value)
        return shlex.join(words)


def problems_report(problems: Iterable[str], translation: Translation) -> str:
    """The error about everything that is wrong with a command line.

    problems      messages about values that are not valid
    translation   the command line
    """
    lines = [*problems, *(f"{flag} can't be used here: {why}" for flag, why in translation.refused)]
    lines += [f"{flag} would be ignored: {why}" for flag, why in translation.ignored]
    if len(lines) > 1 or translation.refused:
        lines.append(f"The rest of the command line: {translation.command_line()}")
    return "\n".join(lines)


def peer_flags() -> dict[str, tuple[bool, bool]]:
    """All these flags -> whether they take an argument, and whether they can be repeated."""
    with_argument = [*_RENAMED, *_TURNED, *(flag for flag, takes in _OTHERS.items() if takes)]
    without = [*_VALUES, *_USUAL, *(flag for flag, takes in _OTHERS.items() if not takes)]
    return {
        **{flag: (True, flag in _MANY) for flag in with_argument},
        **dict.fromkeys(without, (False, False)),
    }


def parameter_name(flag: str) -> str:
    """The name that a flag's value has in the result of `parse_flags`; no setting has this name."""
    return "peer_" + flag.lstrip("-").replace("-", "_")


def translate(given: Mapping[str, Any], environ: Mapping[str, str] | None = None) -> Translation:
    """Turn the flags of other servers among these into settings.

    given     the result of `parse_flags`
    environ   the environment at the start; $PORT is the port if only a host is given

    Raises ValueError if two flags set the same setting.
    """
    flags = {parameter_name(flag): flag for flag in peer_flags()}
    own = {name: value for name, value in given.items() if name not in flags}
    theirs = {flags[name]: value for name, value in given.items() if name in flags}
    found = Translation(own)
    _foreign(found)
    _app(found, theirs)
    _addresses(found, theirs, environ or {})
    for flag, value in theirs.items():
        _one(found, flag, value)
    _own_values(found)
    return found


def meaning(flag: str) -> str:
    """What a flag does here, in Markdown, for the documentation."""
    if flag in _RENAMED:
        return f"`{SETTINGS[_RENAMED[flag]].main_flag}`"
    if flag in _VALUES:
        name, value = _VALUES[flag]
        typed = shlex.join(_typed(SETTINGS[name], value))
        return f"`{typed}`" if typed else f"`{name}` is unset, as by default"
    if flag in _USUAL:
        return "what Servo does anyway"
    if flag in _TURNED:
        return _TURNED[flag].meaning
    if flag in _TOGETHER_WITH:
        return _TOGETHER_WITH[flag]
    outcome = "an error" if flag in _REFUSED else "ignored"
    # Without backquotes, the documentation would show a dash instead of two hyphens.
    advice = _FLAG.sub(lambda found: f"`{found[0]}`", _advice(flag))
    return f"{outcome}: {advice}"


# --- single flags -----------------------------------------------------------------------------


def _one(found: Translation, flag: str, value: Any) -> None:
    try:
        values = _values(flag, value)
    except _NoCounterpartError as error:
        found.refused.append((f"{flag} {value}", str(error)))
        return
    if flag in _REFUSED:
        found.refused.append((flag, _advice(flag)))
    elif flag in _IGNORED:
        found.ignored.append((flag, _advice(flag)))
    for name, text in values.items():
        _put(found, name, text, flag)


def _values(flag: str, value: Any) -> dict[str, Any]:
    """The settings that a flag stands for. Raises ValueError."""
    if flag in _RENAMED:
        return {_RENAMED[flag]: value}
    if flag in _VALUES:
        name, text = _VALUES[flag]
        return {name: text}
    if flag in _TURNED:
        return _TURNED[flag].turn(value)
    return {}


def _put(found: Translation, name: str, value: Any, flag: str) -> None:
    if value == "-" and name in found.values:
        return  # `--access-log --access-logfile FILE`: both turn it on, and one says where
    if SETTINGS[name].type.many and isinstance(value, str):
        value = [value]
    if name in found.values:
        before = found.values[name]
        if not (isinstance(value, list) and isinstance(before, list) and value and name != "bind"):
            other = found.sources.get(name) or SETTINGS[name].main_flag
            raise ValueError(f"{flag} and {other} both set {name}: give one of them")
        value = [*before, *value]
    found.values[name] = value
    found.sources.setdefault(name, flag)


def _foreign(found: Translation) -> None:
    """Move gunicorn's settings without counterpart to the ignored flags."""
    for name in [name for name in found.values if name in FOREIGN]:
        foreign, value = FOREIGN[name], found.values.pop(name)
        if foreign.matters(value):
            found.ignored.append((foreign.main_flag, foreign.advice))


def _app(found: Translation, theirs: dict[str, Any]) -> None:
    """`--factory`: the app's name is that of a function that returns it. hypercorn's `wsgi:a:b`."""
    prefixed = _INTERFACE.match(str(found.values.get("app")))
    if prefixed:
        found.values["app"] = prefixed[2]
        found.values.setdefault("interface", prefixed[1])
    if not theirs.pop("--factory", False):
        return
    app = found.values.get("app")
    if app is None:
        advice = "name the app on the command line, or as module:factory() in the file"
        found.refused.append(("--factory", advice))
    elif ":" in app and not app.endswith(")"):
        found.values["app"] = f"{app}()"


def _addresses(found: Translation, theirs: dict[str, Any], environ: Mapping[str, str]) -> None:
    """`--host`, `--port`, `--uds` and `--fd`; and granian's address for metrics."""
    # uvicorn, too, prefers a descriptor to a path, and a path to a host and port.
    taken = {flag: theirs.pop(flag) for flag in _ADDRESS if flag in theirs}
    if "--fd" in taken:
        bind, flag = f"fd://{taken['--fd']}", "--fd"
    elif "--uds" in taken:
        bind, flag = f"unix:{taken['--uds']}", "--uds"
    elif taken:
        port = taken.get("--port") or environ.get("PORT", "").strip() or _DEFAULT_PORT
        bind = _host_port(taken.get("--host") or _DEFAULT_HOST, port)
        flag = next(iter(taken))
    if taken:
        for other in taken.keys() - _TOGETHER.get(flag, {flag}):
            found.ignored.append((other, f"{flag} says where to listen"))
        _put(found, "bind", [bind], flag)
    metrics = {flag: theirs.pop(flag) for flag in _METRICS if flag in theirs}
    if metrics:
        host = metrics.get("--metrics-address") or _DEFAULT_HOST
        address = _host_port(host, metrics.get("--metrics-port") or "9090")
        if "--metrics" in metrics:
            _put(found, "metrics_bind", address, "--metrics")
        else:
            found.ignored += [(flag, "--metrics turns metrics on") for flag in metrics]


def _host_port(host: str, port: str) -> str:
    return f"[{host}]:{port}" if ":" in host and not host.startswith("[") else f"{host}:{port}"


def _own_values(found: Translation) -> None:
    """Turn other servers' values of flags that Servo has, too."""
    for name, turn in _OWN.items():
        value = found.values.get(name)
        if not isinstance(value, str):
            continue
        flag = found.sources.get(name) or SETTINGS[name].main_flag
        try:
            values = turn(value.strip())
        except _NoCounterpartError as error:
            del found.values[name]
            found.refused.append((f"{flag} {value}", str(error)))
            continue
        if values is None:
            continue
        del found.values[name]
        for other, text in values.items():
            if other == name or other not in found.values:
                found.values[other] = text
                found.sources[other] = flag


def worker_class_and_loop(name: str) -> dict[str, Any] | None:
    """The settings for hypercorn's worker classes, which are event loops; None for other names."""
    if name in ("uvloop", "asyncio"):  # hypercorn's
        return {"worker_class": "async", "loop": name}
    if name == "trio":
        raise _NoCounterpartError("Servo runs ASGI apps on asyncio: use --worker-class async")
    return None


def _loop(name: str) -> dict[str, Any] | None:
    if name in ("zuvloop", "rloop", "winloop"):
        raise _NoCounterpartError("use --loop auto, which takes uvloop if it is installed")
    if ":" in name:
        raise _NoCounterpartError(
            "a loop factory can't be given: use --loop auto, uvloop or asyncio"
        )
    return None


def _interface(name: str) -> dict[str, Any] | None:
    if name == "asginl":  # granian's: ASGI without lifespan
        return {"interface": "asgi", "lifespan": "off"}
    if name == "rsgi":
        raise _NoCounterpartError(
            "serve the app's ASGI or WSGI interface: --interface asgi or wsgi"
        )
    return None


def _log_level(name: str) -> dict[str, Any] | None:
    return {"loglevel": "debug"} if name.lower() == "notset" else None


_OWN: dict[str, Callable[[str], dict[str, Any] | None]] = {
    "worker_class": worker_class_and_loop,
    "loop": _loop,
    "interface": _interface,
    "loglevel": _log_level,
}


# --- arguments that have another form here ----------------------------------------------------


@dataclass(frozen=True, slots=True)
class _Turned:
    """A flag whose argument becomes another one.

    meaning   its counterpart, in Markdown
    turn      the argument -> settings; raises _NoCounterpartError
    """

    meaning: str
    turn: Callable[[Any], dict[str, Any]]


def _http(value: str) -> dict[str, Any]:
    name = value.strip().lower()
    if name in ("auto", "zttp"):  # uvicorn's third parser, and either server's choice
        return {}
    if name in ("1", "2"):  # granian: the version of HTTP
        return {"http_protocols": f"h{name}"}
    return {"http_parser": value}


def _ws(value: str) -> dict[str, Any]:
    if value == "none":
        return {"websocket": False}
    if value not in ("auto", "websockets", "websockets-sansio", "wsproto"):
        # granian's flag takes no argument, so click has read the next word, which may be the app.
        raise _NoCounterpartError(
            "it takes auto, websockets, websockets-sansio, wsproto or none; WebSockets are on by "
            "default, so leave it out"
        )
    return {}


def _uds_permissions(value: str) -> dict[str, Any]:
    try:
        mode = int(value, 8)
    except ValueError:
        raise _NoCounterpartError("expected octal digits, such as 660") from None
    # Only the permission to write matters for a socket. The same umask applies to files, so it must
    # not take away more, and never anything from the owner.
    mask = sum(7 * bit for bit in (8, 1) if not mode & (2 * bit))
    return {"umask": f"0o{mask:03o}"} if mask else {}


def _milliseconds(name: str) -> Callable[[str], dict[str, Any]]:
    return lambda value: {name: f"{value}ms"}


def _tls_version(value: str) -> dict[str, Any]:
    return {"tls_minimum_version": value.strip().lower().removeprefix("tls").lstrip("v")}


def _access_log_format(value: str) -> dict[str, Any]:
    unknown = [name for name in _ATOM.findall(value) if name not in _ATOMS]
    if unknown:
        raise _NoCounterpartError(
            f"there is no field %({unknown[0]})s: use --access-logformat with gunicorn's atoms"
        )
    text = _ATOM.sub(lambda atom: f"%({_ATOMS[atom[1]]})s", value)
    # gunicorn's time has brackets of its own.
    return {"access_log_format": text.replace("[%(t)s]", "%(t)s")}


_ADDRESS = ("--host", "--port", "--uds", "--fd")
_TOGETHER = {"--host": {"--host", "--port"}, "--port": {"--host", "--port"}}
_METRICS = ("--metrics", "--metrics-address", "--metrics-port")
_BIND = _Turned("`--bind HOST:PORT`", lambda _value: {})

_TURNED: dict[str, _Turned] = {
    "--host": _BIND,
    "--port": _BIND,
    "--uds": _Turned("`--bind unix:PATH`", lambda _value: {}),
    "--fd": _Turned("`--bind fd://N`", lambda _value: {}),
    "--uds-permissions": _Turned("`--umask`, so that the same users can connect", _uds_permissions),
    "--env-files": _Turned("`--env-file`", lambda value: {"env_file": value}),
    "--http": _Turned("`--http-parser`; granian's `1` and `2`: `--http-protocols`", _http),
    "--ws": _Turned("`none`: `--no-websocket`; else what Servo does anyway", _ws),
    "--read-timeout": _Turned(
        "`--header-timeout` and `--body-timeout`",
        lambda value: {"header_timeout": value, "body_timeout": value},
    ),
    "--http1-header-read-timeout": _Turned(
        "`--header-timeout`, in milliseconds", _milliseconds("header_timeout")
    ),
    "--ssl-protocol-min": _Turned("`--tls-minimum-version`", _tls_version),
    "--workers-max-rss": _Turned(
        "`--max-worker-memory`, in MiB", lambda value: {"max_worker_memory": f"{value}M"}
    ),
    "--access-log-fmt": _Turned(
        "`--access-logformat`, with granian's fields turned into gunicorn's atoms",
        _access_log_format,
    ),
    "--metrics-address": _Turned("the host of `--metrics-bind`", lambda _value: {}),
    "--metrics-port": _Turned("the port of `--metrics-bind`", lambda _value: {}),
}
# Flags without argument whose meaning depends on others.
_TOGETHER_WITH = {
    "--factory": "the app as `module:factory()`",
    "--metrics": "`--metrics-bind 127.0.0.1:9090`",
}
_OTHERS = {**_IGNORED, **_REFUSED, **dict.fromkeys(_TOGETHER_WITH, False)}


# --- text -------------------------------------------------------------------------------------


# hypercorn's name is that of our setting, which has no flag because `ps` would show the password.
_SAME_ADVICE = {"--keyfile-password": "--ssl-keyfile-password"}


def _advice(flag: str) -> str:
    peer = peer_of(_SAME_ADVICE.get(flag, flag))
    assert peer is not None, flag  # a test checks it for every flag
    if not peer.setting:
        return peer.remark
    value = f" {peer.value}" if peer.value else ""
    remark = f" ({peer.remark})" if peer.remark else ""
    setting = SETTINGS[peer.setting]
    return f"use {setting.variable if setting.secret else setting.main_flag}{value}{remark}"


def _listed(pairs: list[tuple[str, str]]) -> str:
    return ", ".join(f"{flag} ({advice})" for flag, advice in pairs)


def _typed(setting: Setting, value: Any) -> Iterator[str]:
    """The words of a command line that give a setting a value."""
    if setting.is_switch:
        if str(value).strip().lower() in ("false", "no", "off", "0", "n"):
            value = False
        yield setting.main_flag if value else f"--no-{setting.main_flag[2:]}"
    elif setting.no_flag and value == setting.no_flag[1]:
        yield setting.no_flag[0]
    elif setting.nullable and not value:
        # Unset is the default; a file may say otherwise, but seldom does.
        return
    else:
        values = value if isinstance(value, list) else [value]
        if setting.type.many and not value:
            values = [""]
        for each in values:
            if setting.names_only:
                each = f"{str(each).partition('=')[0]}=…"
            yield from (setting.main_flag, str(each))
