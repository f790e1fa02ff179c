"""Metrics and probes."""

from __future__ import annotations

from servo.settings.setting import Setting
from servo.settings.statsd_address import StatsdAddress
from servo.settings.types import Switch, Text

_METRICS = "Metrics"

SETTINGS = [
    Setting(
        name="metrics_bind",
        type=Text(),
        default=None,
        nullable=True,
        section=_METRICS,
        reloadable=False,
        help="Where metrics and probes are served: HOST:PORT or unix:/path. Unset: nowhere.",
        details="""\
`/metrics` for Prometheus, `/-/live` and `/-/ready` for probes, `/status.json`; by a small process
of its own. Whoever reaches the address may read them. Needs prometheus-client, which
`servo-server[standard]` brings.""",
    ),
    Setting(
        name="statsd_host",
        type=StatsdAddress(),
        default=None,
        nullable=True,
        section=_METRICS,
        reloadable=False,
        help="A statsd server to send gunicorn's metrics to: HOST:PORT or unix://PATH.",
        details="Sent once a second, by the same process; the port is 8125 unless given.",
    ),
    Setting(
        name="statsd_prefix",
        type=Text(),
        default="",
        section=_METRICS,
        reloadable=False,
        help="What the names sent to statsd begin with; a dot follows.",
    ),
    Setting(
        name="dogstatsd_tags",
        type=Text(),
        default="",
        section=_METRICS,
        reloadable=False,
        help="Tags for each of them, in Datadog's form: name:value,name:value.",
    ),
    Setting(
        name="enable_backlog_metric",
        type=Switch(),
        default=False,
        section=_METRICS,
        reloadable=False,
        help="Send gunicorn.backlog to statsd: connections that wait to be accepted.",
    ),
]
