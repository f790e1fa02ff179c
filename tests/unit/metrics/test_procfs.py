"""CPU time and memory of real processes, read from this machine's kernel."""

from __future__ import annotations

import os

from servo.metrics import procfs


def test_this_process_has_used_cpu_time_and_memory():
    own = procfs.cpu_of(os.getpid())
    family = procfs.cpu_with_children(os.getpid())
    assert own is not None
    assert family is not None
    assert 0 < own.user <= family.user
    memory = procfs.memory_of(os.getpid())
    assert memory is not None
    assert memory.resident > 1 << 20
    assert memory.proportional is None or 0 < memory.proportional <= memory.resident * 2


def test_a_child_is_listed_until_it_is_reaped():
    reader, writer = os.pipe()
    pid = os.fork()
    if pid == 0:
        os.read(reader, 1)
        os._exit(0)
    assert pid in procfs.children_of(os.getpid())
    os.write(writer, b"x")
    os.waitpid(pid, 0)
    assert pid not in procfs.children_of(os.getpid())
    os.close(reader)
    os.close(writer)


def test_a_process_that_does_not_exist_has_nothing():
    nobody = 2**22 + 1  # higher than any pid of the kernel
    assert procfs.memory_of(nobody) is None
    assert procfs.cpu_of(nobody) is None
    assert procfs.cpu_without_children(nobody) is None
    assert procfs.cpu_with_children(nobody) is None
    assert procfs.children_of(nobody) == []


def test_the_time_of_ended_children_is_left_out(monkeypatch, tmp_path):
    text = "7 (a name) S 1 7 7 0 -1 0 0 0 0 0 200 100 5000 3000 20 0 1 0 0"
    (tmp_path / "stat").write_text(text)
    monkeypatch.setattr(procfs, "Path", lambda _path: tmp_path / "stat")
    monkeypatch.setattr(procfs, "_TICKS_S", 100)
    assert procfs.cpu_of(7) == procfs.CPU(52.0, 31.0)
    assert procfs.cpu_without_children(7) == procfs.CPU(2.0, 1.0)


def test_cpu_time_is_read_again_if_a_child_was_reaped_meanwhile(monkeypatch):
    """A reaped child's time moves to its parent. It is neither lost nor counted twice."""
    turns = iter([["1", "0"], ["2", "0"], ["2", "0"], ["2", "0"]])
    own = iter([procfs.CPU(1, 0), procfs.CPU(6, 0)])
    monkeypatch.setattr(procfs, "_children_cpu", lambda _pid: next(turns))
    monkeypatch.setattr(procfs, "cpu_of", lambda pid: next(own) if pid == 1 else procfs.CPU(5, 0))
    children = iter([[2], []])
    monkeypatch.setattr(procfs, "children_of", lambda _pid: next(children))
    assert procfs.cpu_with_children(1) == procfs.CPU(6, 0)


def test_waiting_for_a_cpu_is_counted(monkeypatch, tmp_path):
    assert procfs.waited_ns() >= 0
    monkeypatch.setattr(procfs, "Path", lambda _path: tmp_path / "schedstat")
    assert procfs.waited_ns() == 0  # this kernel doesn't count it
    (tmp_path / "schedstat").write_text("1200 34 5\n")
    assert procfs.waited_ns() == 34
