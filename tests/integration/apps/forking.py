"""Applications that start processes in every way that Python has, one way for each path."""

import asyncio
import multiprocessing
import os
import signal
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor

NAMES = ("SIGTERM", "SIGINT", "SIGQUIT", "SIGHUP", "SIGUSR1", "SIGWINCH", "SIGABRT")
fork = multiprocessing.get_context("fork")


def sleep():
    time.sleep(600)


def square(number):
    return number * number


def terminate():
    """Children that are told to end as soon as they are there."""
    codes = []
    for _ in range(20):
        child = fork.Process(target=sleep)
        child.start()
        child.terminate()
        child.join()
        codes.append(child.exitcode)
    return str(set(codes))


def pools():
    for _ in range(10):
        with fork.Pool(2) as pool:
            assert pool.map(square, range(4)) == [0, 1, 4, 9]
    return "done"


def look(writer):
    wakeup = signal.set_wakeup_fd(-1)
    handlers = {signal.getsignal(getattr(signal, name)) for name in NAMES}
    writer.send((wakeup, sorted(map(repr, handlers))))


def inherits():
    """What a child has of the worker's."""
    reader, writer = fork.Pipe()
    child = fork.Process(target=look, args=(writer,))
    child.start()
    answer = reader.recv()
    child.join()
    return str(answer)


def own_handler():
    """A handler that the application has set stays, as it does without a server."""
    pid = os.fork()
    if pid == 0:
        os._exit(3 if signal.getsignal(signal.SIGUSR2) is on_usr2 else 4)
    return str(os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]))


def on_usr2(number, frame):
    pass


signal.signal(signal.SIGUSR2, on_usr2)


def preexec():
    code = "import time; time.sleep(600)"
    child = subprocess.Popen([sys.executable, "-c", code], preexec_fn=os.setpgrp)
    child.terminate()
    return str(child.wait())


def ignores():
    """The signals that a program which is started here ignores, as bits."""
    status = subprocess.run(["grep", "SigIgn", "/proc/self/status"], capture_output=True, text=True)
    return status.stdout.split()[1]


def in_executor():
    """A job that forks, and comes back in both processes."""
    with ThreadPoolExecutor(1) as executor:
        pid = executor.submit(os.fork).result(20)
    return str(os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]))


def alone():
    return str(os.getpid())


PATHS = {
    "/terminate": terminate,
    "/pools": pools,
    "/inherits": inherits,
    "/own-handler": own_handler,
    "/preexec": preexec,
    "/ignores": ignores,
    "/in-executor": in_executor,
    "/alone": alone,
}


def stream():
    """A body that forks in its middle."""
    yield b"first "
    pid = os.fork()
    yield b"second "
    if pid:
        yield str(os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])).encode()


def wsgi(environ, start_response):
    if environ["PATH_INFO"] == "/stream":
        start_response("200 OK", [("Content-Type", "text/plain")])
        return stream()
    body = PATHS[environ["PATH_INFO"]]().encode()
    start_response("200 OK", [("Content-Length", str(len(body)))])
    return [body]


# --- coroutines that fork and go on in both processes ---------------------------------------------


async def sleeps(send):
    pid = os.fork()
    await asyncio.sleep(0.001 if pid == 0 else 0)
    return pid


async def returns(send):
    return os.fork()


async def raises(send):
    pid = os.fork()
    if pid == 0:
        raise RuntimeError("the child's")
    return pid


async def yields(send):
    pid = os.fork()
    await Once()
    return pid


async def in_a_task(send):
    return await asyncio.create_task(returns(send))


async def in_a_callback(send):
    future = asyncio.get_running_loop().create_future()
    asyncio.get_running_loop().call_soon(lambda: future.set_result(os.fork()))
    return await future


async def in_a_thread(send):
    return await asyncio.to_thread(os.fork)


async def removes(send):
    """What the child does to the loop's descriptors must not be done to the worker's."""
    loop = asyncio.get_running_loop()
    reader, writer = os.pipe()
    readable = asyncio.Event()
    loop.add_reader(reader, readable.set)
    await asyncio.sleep(0.01)  # until the loop watches it
    pid = os.fork()
    if pid == 0:
        loop.remove_reader(reader)
        os.close(reader)
        return pid
    await asyncio.to_thread(os.waitid, os.P_PID, pid, os.WEXITED | os.WNOWAIT)
    os.write(writer, b"x")
    await asyncio.wait_for(readable.wait(), 20)
    loop.remove_reader(reader)
    os.close(reader)
    os.close(writer)
    return pid


async def streams(send):
    await send({"type": "http.response.start", "status": 200, "headers": []})
    await send({"type": "http.response.body", "body": b"first ", "more_body": True})
    pid = os.fork()
    await send({"type": "http.response.body", "body": b"%d " % pid, "more_body": True})
    return pid


class Once:
    def __await__(self):
        yield


BOTH = {
    "/sleeps": sleeps,
    "/returns": returns,
    "/raises": raises,
    "/yields": yields,
    "/in-a-task": in_a_task,
    "/in-a-callback": in_a_callback,
    "/in-a-thread": in_a_thread,
    "/removes": removes,
    "/streams": streams,
}


async def asgi(scope, receive, send):
    if scope["type"] == "lifespan":
        raise NotImplementedError
    path = scope["path"]
    if path in BOTH:
        # Others are there to be run on in the same turn of the loop.
        loop = asyncio.get_running_loop()
        loop.call_soon(ran.append, None)
        pid = await BOTH[path](send)
        body = str(await asyncio.to_thread(ended, pid)).encode()
        await asyncio.sleep(0.01)
    else:
        body = PATHS[path]().encode()
    if path != "/streams":
        await send({"type": "http.response.start", "status": 200, "headers": []})
    await send({"type": "http.response.body", "body": body})


ran = []


def ended(pid):
    """The child's exit code, once it has ended."""
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
