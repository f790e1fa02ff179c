"""A worker's threads are daemons at Python's end, but the threads that they start are not."""

from __future__ import annotations

import threading

from servo.workers.threads import WorkerThread


def test_a_worker_thread_is_a_daemon_and_starts_none():
    started = []

    def work():
        thread = threading.Thread(target=lambda: None)
        thread.start()
        thread.join()
        started.append(thread)

    thread = WorkerThread("servo-0", work)
    assert thread.daemon
    thread.start()
    thread.join()
    assert thread.name == "servo-0"
    assert not started[0].daemon
