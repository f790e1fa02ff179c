"""Giving up root: a worker runs as the configured user and group."""

from __future__ import annotations

import os
import pwd

from servo.errors import ConfigError


def become(user: int | None, group: int | None, initgroups: bool) -> None:
    """Change this process's user and group ids; None leaves one as it is.

    `initgroups` also takes the user's supplementary groups. Raises ConfigError when the kernel
    refuses, as it does to anyone but root.
    """
    uid = os.geteuid() if user is None else user
    gid = os.getegid() if group is None else group
    try:
        if gid != os.getegid() or (initgroups and uid != os.geteuid()):
            if initgroups:
                os.initgroups(pwd.getpwuid(uid).pw_name, gid)
            elif os.geteuid() == 0:
                os.setgroups([gid])
            os.setgid(gid)
        if uid != os.geteuid():
            os.setuid(uid)
    except (OSError, KeyError) as error:
        raise ConfigError(
            f"can't become user {uid}, group {gid}: {error} (only root may change user)"
        ) from error
