"""Settings of metrics and probes."""

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
        help="Where to serve metrics and probes: HOST:PORT or unix:/path. Unset: nowhere.",
        details="""\
A small separate process serves `/metrics` for Prometheus, `/-/live` and `/-/ready` for probes, and
`/status.json`. Everybody who can connect to the address can read them. This needs
prometheus-client, which is part of `servo-server[standard]`.""",
    ),
    Setting(
        name="statsd_host",
        type=StatsdAddress(),
        default=None,
        nullable=True,
        section=_METRICS,
        reloadable=False,
        help="A statsd server to send gunicorn's metrics to: HOST:PORT or unix://PATH.",
        details="""\
The process that serves `metrics_bind` sends them once a second, even if `metrics_bind` is unset.
Without a port, 8125 is used.""",
    ),
    Setting(
        name="statsd_prefix",
        type=Text(),
        default="",
        section=_METRICS,
        reloadable=False,
        help="A prefix for the names sent to statsd; a dot is added after it.",
    ),
    Setting(
        name="dogstatsd_tags",
        type=Text(),
        default="",
        section=_METRICS,
        reloadable=False,
        help="Tags for each metric sent to statsd, in Datadog's form: name:value,name:value.",
    ),
    Setting(
        name="enable_backlog_metric",
        type=Switch(),
        default=False,
        section=_METRICS,
        reloadable=False,
        help="Send gunicorn.backlog to statsd: how many connections wait to be accepted.",
    ),
]
