"""Errors while a request's body is stored."""

from __future__ import annotations

import errno
import logging

import pytest

from servo.apps.body_spool import discard, refusal


@pytest.mark.parametrize(
    ("number", "status"), [(errno.ENOSPC, 507), (errno.EDQUOT, 507), (errno.EIO, 500)]
)
def test_a_full_disk_has_a_status_of_its_own(
    number: int, status: int, caplog: pytest.LogCaptureFixture
) -> None:
    error = refusal(OSError(number, "no luck"))
    assert (error.status, error.reason) == (status, "the body can't be stored")
    assert "Can't store a request body: " in caplog.text
    assert "no luck" in caplog.text


class Full:
    """A file whose last bytes don't fit on the disk."""

    def close(self) -> None:
        raise OSError(errno.ENOSPC, "full")


def test_a_body_that_can_not_be_closed_is_only_logged(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.DEBUG)
    discard(Full())
    assert [record.levelname for record in caplog.records] == ["DEBUG"]
