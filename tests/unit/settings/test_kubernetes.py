"""Variables that Kubernetes sets, and similar ones that users set."""

from __future__ import annotations

import pytest

from servo.settings.kubernetes import is_service_variable

SERVICES = ("", "_APP", "_WORKERS", "_BIND", "_APP_V2", "_CONTROL_SOCKET", "_SERVICE", "_PORT")
PARTS = {
    "SERVICE_HOST": ("10.0.0.1", "fd00::1"),
    "SERVICE_PORT": ("80", "65535"),
    "SERVICE_PORT_HTTP": ("8000",),
    "SERVICE_PORT_HTTP_2": ("8000",),
    "PORT": ("tcp://10.0.0.1:80", "udp://10.0.0.1:53", "sctp://10.0.0.1:9", "tcp://[fd00::1]:80"),
    "PORT_8000_TCP": ("tcp://10.0.0.1:8000", "tcp://[fd00::1]:8000"),
    "PORT_8000_TCP_PROTO": ("tcp",),
    "PORT_8000_TCP_PORT": ("8000",),
    "PORT_8000_TCP_ADDR": ("10.0.0.1", "fd00::1"),
    "PORT_53_UDP": ("udp://10.0.0.1:53",),
    "PORT_53_UDP_PROTO": ("udp",),
    "PORT_9_SCTP_ADDR": ("10.0.0.1",),
}


@pytest.mark.parametrize("service", SERVICES)
@pytest.mark.parametrize(
    ("part", "value"), [(part, value) for part, values in PARTS.items() for value in values]
)
def test_its_variables(service: str, part: str, value: str) -> None:
    assert is_service_variable(f"SERVO{service}_{part}", value)


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("SERVO_PORT", "8000"),  # a user's mistake for SERVO_BIND
        ("SERVO_PORT", ""),
        ("SERVO_PORT", "tcp://10.0.0.1:80 "),
        ("SERVO_PORT", "http://10.0.0.1:80"),
        ("SERVO_PORT", "tcp://db:80"),
        ("SERVO_PORT", "tcp://10.0.0.1:99999"),
        ("SERVO_APP_SERVICE_HOST", "shop"),
        ("SERVO_APP_SERVICE_PORT", "0"),
        ("SERVO_APP_SERVICE_PORT", "http"),
        ("SERVO_APP_PORT_80_TCP", "tcp://10.0.0.1:81"),
        ("SERVO_APP_PORT_80_TCP", "udp://10.0.0.1:80"),
        ("SERVO_APP_PORT_80_TCP_PROTO", "udp"),
        ("SERVO_APP_PORT_80_TCP_PORT", "81"),
        ("SERVO_APP_PORT_80_TCP_NAME", "x"),
        ("SERVO_APP_PORT_80_TLS", "tcp://10.0.0.1:80"),
        ("SERVO_HOST", "10.0.0.1"),
        ("SERVO_WROKERS", "80"),
        ("SERVO_app_SERVICE_PORT", "80"),
        ("XSERVO_PORT", "tcp://10.0.0.1:80"),
    ],
)
def test_others(name: str, value: str) -> None:
    assert not is_service_variable(name, value)
