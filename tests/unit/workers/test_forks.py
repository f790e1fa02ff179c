"""The state of a forked child, tested in children that check it and end."""

from __future__ import annotations

import asyncio
import os
import select
import socket
import sys
from concurrent.futures import ThreadPoolExecutor

import pytest

from servo.workers.forks import end_on_return, open_fds, replace_sockets, replace_wakers


def in_child(work):
    """The exit code of a child that does this: 0 when it returns true."""
    pid = os.fork()
    if pid == 0:
        code = 2
        try:
            code = 0 if work() else 1
        finally:
            os._exit(code)
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])


def test_a_replaced_epoll_is_the_childs_own():
    ours, theirs = socket.socketpair()
    with ours, theirs, select.epoll() as epoll:
        epoll.register(ours, select.EPOLLIN)
        theirs.send(b"x")

        def work():
            replace_wakers([epoll.fileno()])
            with pytest.raises(FileNotFoundError):
                epoll.unregister(ours)
            return epoll.poll(0) == []

        assert in_child(work) == 0
        assert [fd for fd, _ in epoll.poll(0)] == [ours.fileno()]


def test_a_replaced_eventfd_wakes_nobody():
    fd = os.eventfd(0, os.EFD_NONBLOCK | os.EFD_CLOEXEC)
    try:

        def work():
            replace_wakers([fd])
            os.eventfd_write(fd, 1)
            return True

        assert in_child(work) == 0
        with pytest.raises(BlockingIOError):
            os.eventfd_read(fd)
    finally:
        os.close(fd)


def test_what_is_closed_already_is_passed_over():
    fd = os.eventfd(0, os.EFD_CLOEXEC)
    os.close(fd)
    replace_wakers([fd])
    assert fd not in open_fds()


def test_a_child_writes_to_no_client():
    ours, theirs = socket.socketpair()
    with ours, theirs:

        def work():
            replace_sockets([ours.fileno()])
            with pytest.raises(BrokenPipeError):
                ours.send(b"x")
            return True

        assert in_child(work) == 0
        theirs.setblocking(False)
        with pytest.raises(BlockingIOError):
            theirs.recv(1)


def test_descriptors_that_are_open():
    before = open_fds()
    with select.epoll() as epoll:
        assert open_fds() - before == {epoll.fileno()}
    assert open_fds() == before


def test_there_is_no_way_back_from_nowhere():
    assert not end_on_return(None)


def test_a_job_of_an_executor_ends_with_itself():
    def job():
        pid = os.fork()
        if pid == 0:
            assert end_on_return(None)
        return pid

    with ThreadPoolExecutor(1) as executor:
        pid = executor.submit(job).result()
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0


def test_a_coroutine_ends_where_it_awaits():
    async def forks():
        pid = os.fork()
        if pid == 0:
            assert end_on_return(frame)
            await asyncio.Event().wait()
            os._exit(3)
        return pid

    frame = sys._getframe()
    pid = asyncio.run(forks())
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0
