"""Giving up root: a worker runs as the configured user and group."""

from __future__ import annotations

import os
import pwd

from servo.errors import ConfigError


def become(user: int | None, group: int | None, initgroups: bool) -> None:
    """Change this process's user and groups; None leaves one as it is.

    user        a user id. Without a group it brings its own primary and supplementary groups, as
                systemd's User= does: root's would let it read and write what is root's
    group       a group id. With it the process has this group alone
    initgroups  with a group: the user's supplementary groups, too

    Groups change first: once root is given up, the kernel lets nobody change them (CERT POS36-C).
    Raises ConfigError when the kernel refuses, as it does to anyone but root, and for a user
    without an entry in the user database whose groups are not known.
    """
    uid = os.geteuid() if user is None else user
    gid = os.getegid() if group is None else group
    changes_user = uid != os.geteuid()
    try:
        if changes_user and (group is None or initgroups):
            account = _account(uid)
            gid = account.pw_gid if group is None else group
            os.initgroups(account.pw_name, gid)
        elif changes_user or (group is not None and os.geteuid() == 0):
            os.setgroups([gid])
        if gid != os.getegid():
            os.setgid(gid)
        if changes_user:
            os.setuid(uid)
    except OSError as error:
        raise ConfigError(
            f"can't become user {uid}, group {gid}: {error} (only root may change user)"
        ) from error


def _account(uid: int) -> pwd.struct_passwd:
    try:
        return pwd.getpwuid(uid)
    except KeyError as error:
        raise ConfigError(
            f"can't become user {uid}: the user database has no such user, so its groups are not "
            "known; name a group (--group), without initgroups"
        ) from error
