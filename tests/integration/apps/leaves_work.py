"""Applications with work that goes on after the response: a worker's end must wait for it."""

import asyncio
import atexit
import concurrent.futures
import logging
import logging.handlers
import multiprocessing
import os
import sys
import threading
import time

fork = multiprocessing.get_context("fork")
pools = []
go_on = threading.Event()


def say(text):
    os.write(1, f"{text}\n".encode())


def work(name, seconds):
    time.sleep(seconds)
    say(f"done: {name}")


def thread(seconds):
    """A thread, which no one has said to be a daemon."""
    threading.Thread(target=work, args=("thread", seconds), name="left-alone").start()


def executor(seconds):
    """More jobs than threads."""
    pool = concurrent.futures.ThreadPoolExecutor(1, thread_name_prefix="left-pool")
    pools.append(pool)
    for number in range(3):
        pool.submit(work, f"job {number}", seconds / 3)


def processes(seconds):
    pool = concurrent.futures.ProcessPoolExecutor(2, mp_context=fork)
    pools.append(pool)
    pool.submit(work, "process job", seconds)


def daemonic(seconds):
    child = fork.Process(target=time.sleep, args=(600,), daemon=True)
    child.start()
    pools.append(child)


def child(seconds):
    process = fork.Process(target=work, args=("child", seconds), name="left-child")
    process.start()
    pools.append(process)


def exits(seconds):
    atexit.register(say, "done: atexit")


def logs(seconds):
    """A handler that keeps its records back until it is closed."""
    target = logging.StreamHandler(sys.stdout)
    handler = logging.handlers.MemoryHandler(100, target=target, flushLevel=logging.CRITICAL)
    logging.getLogger("app").addHandler(handler)
    logging.getLogger("app").warning("done: log")


def lasting(seconds):
    """An atexit function that never returns."""
    atexit.register(time.sleep, 600)


LEAVE = {
    "/thread": thread,
    "/executor": executor,
    "/processes": processes,
    "/daemonic": daemonic,
    "/child": child,
    "/exits": exits,
    "/logs": logs,
    "/lasting": lasting,
    "/nothing": lambda seconds: None,
}


def leave(path, query):
    LEAVE[path](float(query or 0))
    return str(os.getpid()).encode()


def wsgi(environ, start_response):
    body = leave(environ["PATH_INFO"], environ["QUERY_STRING"])
    start_response("200 OK", [("Content-Length", str(len(body)))])
    return [body]


async def asgi(scope, receive, send):
    if scope["type"] == "lifespan":
        raise NotImplementedError
    path, query = scope["path"], scope["query_string"].decode()
    if path == "/executor":
        # The loop's own executor, too.
        pools.append(asyncio.get_running_loop().run_in_executor(None, work, "default job", 0.1))
    body = leave(path, query)
    await send({"type": "http.response.start", "status": 200, "headers": []})
    await send({"type": "http.response.body", "body": body})
