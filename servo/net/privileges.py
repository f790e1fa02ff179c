"""Gives up root: a worker runs as the configured user and group."""

from __future__ import annotations

import os
import pwd

from servo.errors import ConfigError


def become(user: int | None, group: int | None, initgroups: bool) -> None:
    """Change the user and groups of this process.

    user        a user id; None to keep the user. If `group` is None, the process gets the groups of
                this user, as with systemd's User=. If it kept root's groups, it could still use
                these groups' files
    group       a group id, which becomes the only group of the process unless `initgroups` is set.
                None: the groups of `user`; without a user, the group stays
    initgroups  (with `group`) whether to add the user's supplementary groups

    Groups change first, because a process can't change them after it has given up root (CERT
    POS36-C). Raises ConfigError if the kernel refuses (only root may do this), or if the user's
    groups are needed but the user database has no such user.
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
