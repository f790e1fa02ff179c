"""The messages between a caller and a pool process, on a Unix socket.

A connection carries one task. The socket is of the type SOCK_SEQPACKET, so each message arrives
whole, and a message is either sent whole or not at all:

    caller:   TASK                     CREDIT ...
    process:        RESULT or ERROR, or ITEM ... END (for a stream)

A message consists of a fixed head, a label, and the data. The data is a table of sizes, a pickle
(protocol 5), and the pickle's out-of-band buffers. Data of more than MAX_INLINE_BYTES is written
to a memfd, whose descriptor travels with the message (SCM_RIGHTS). The memfd is sealed, so the
receiver can map it without the risk that the sender changes or shortens it.

What is copied, for large data:

* a buffer, such as that of a numpy array: once, by the sender, into the memfd. The receiver's array
  is a private mapping of the memfd: its pages are copied only if the receiver writes to them.
* bytes and text: once by the sender, and once by the receiver, because Python's bytes objects
  can't refer to foreign memory.

Nothing passes through a pipe, and the kernel copies nothing more.
"""

from __future__ import annotations

import array
import fcntl
import inspect
import io
import mmap
import os
import pickle
import socket
import struct
import sys
from types import FunctionType, MethodType
from typing import TYPE_CHECKING, Any, Final, NamedTuple

from servo.pools.board import ADD_SEALS, SIZE_SEALS
from servo.pools.errors import NotPicklable

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Sequence

    Buffer = bytes | bytearray | memoryview

TASK: Final = 1
RESULT: Final = 2
ERROR: Final = 3
ITEM: Final = 4
END: Final = 5
CREDIT: Final = 6

# Flags of a TASK. A stream's function returns an iterable, whose items are sent one by one. A task
# with a lifeline ends when the caller closes the other end of a pipe.
STREAM: Final = 1
LIFELINE: Final = 2

# Larger data goes into a memfd. Below this size, copying through the socket is cheaper: a memfd
# costs six system calls at each end. Several of these messages fit into a socket's buffer
# (net.core.wmem_default, 208 KiB), so sending one does not block.
MAX_INLINE_BYTES: Final = 32 << 10
# A smaller buffer is pickled in-band, so that a list of small arrays makes no long table.
_MIN_BUFFER_BYTES: Final = 4 << 10
_ALIGNMENT: Final = 64  # numpy's arrays are fastest if their data begins on a cache line
_MAX_LABEL_BYTES: Final = 120
_MAX_PACKET_BYTES: Final = MAX_INLINE_BYTES + 4096
_MAX_VECTOR: Final = 1024  # IOV_MAX

# kind, flags, length of the label, credit, key of the task
_HEAD = struct.Struct("=BBHIQ")
_SIZE = struct.Struct("=Q")
_RECEIVE = getattr(socket, "MSG_CMSG_CLOEXEC", 0)
_RIGHTS_SPACE = socket.CMSG_SPACE(2 * array.array("i").itemsize)

_GET_SEALS = 1034
_SEALS = SIZE_SEALS | 8  # and F_SEAL_WRITE


class WireError(Exception):
    """Raised for a message that breaks the rules above. Both ends are Servo, so it is a bug."""


class Message(NamedTuple):
    """A received message.

    kind    TASK, RESULT, …
    flags   of a TASK: STREAM, LIFELINE
    credit  TASK, CREDIT: how many further items the caller takes
    key     TASK: a number that no other task of the pool has (see `servo.pools.board`)
    label   TASK: the name of the function
    data    the table, the pickle and the buffers; empty if the message has none
    fd      TASK with LIFELINE: the read end of the caller's pipe; otherwise -1
    """

    kind: int
    flags: int
    credit: int
    key: int
    label: str
    data: memoryview
    fd: int


class Packed(NamedTuple):
    """Data that is ready to be sent.

    inline  the data; empty if it is in the memfd
    fd      the memfd; -1 if the data is inline. The owner of this object closes it
    """

    inline: bytes
    fd: int

    def close(self) -> None:
        """Close the memfd."""
        if self.fd >= 0:
            os.close(self.fd)


NOTHING: Final = Packed(b"", -1)


# --- pickling -------------------------------------------------------------------------------------


def check_function(function: Callable[..., Any], *, is_stream: bool = False) -> None:
    """Raise NotPicklable or TypeError if this function can't be a task.

    function   the function
    is_stream  whether it may be a generator function
    """
    if not callable(function):
        raise TypeError(f"a task must be a function, not {function!r}")
    plain = function
    while hasattr(plain, "func") and not isinstance(plain, (FunctionType, MethodType)):
        plain = plain.func  # functools.partial
    name = getattr(plain, "__qualname__", "")
    advice = "define it at the top level of a module, because a pool process imports it by its name"
    if "<lambda>" in name:
        raise NotPicklable(f"a lambda can't be a task of a pool; {advice}")
    if "<locals>" in name:
        raise NotPicklable(f"the local function {name} can't be a task of a pool; {advice}")
    code = getattr(plain, "__code__", None)
    flags = code.co_flags if code is not None else 0
    if flags & (inspect.CO_COROUTINE | inspect.CO_ASYNC_GENERATOR):
        raise TypeError(
            f"{name} is an async function; a pool runs plain functions. Call asyncio.run in one"
        )
    if flags & inspect.CO_GENERATOR and not is_stream:
        raise TypeError(f"{name} is a generator function; call stream instead of submit")


class _Parts(io.RawIOBase):
    """The file that pickle writes to: it keeps long objects by reference, and copies nothing."""

    def __init__(self) -> None:
        super().__init__()
        self.parts: list[Buffer] = []
        self.size = 0

    def write(self, data: Any) -> int:
        size = data.nbytes if isinstance(data, memoryview) else len(data)
        self.parts.append(data)
        self.size += size
        return size


def pack(value: Any, what: str) -> Packed:
    """Pickle a value. Raises NotPicklable, or OSError if there is no memory for a memfd.

    value  the value
    what   what it is, for the message of the error
    """
    buffers: list[memoryview] = []

    def is_in_band(buffer: pickle.PickleBuffer) -> bool:
        try:
            raw = buffer.raw()
        except BufferError:
            return True
        if raw.nbytes < _MIN_BUFFER_BYTES:
            return True
        buffers.append(raw)
        return False

    file = _Parts()
    try:
        pickle.Pickler(file, 5, buffer_callback=is_in_band).dump(value)
    except RecursionError:
        raise NotPicklable(f"{what} can't be pickled: it is nested too deeply") from None
    except Exception as error:
        raise NotPicklable(f"{what} can't be pickled: {error}") from error
    sizes = [file.size, *(buffer.nbytes for buffer in buffers)]
    table = _SIZE.pack(len(sizes)) + b"".join(map(_SIZE.pack, sizes))
    parts: list[Buffer] = [table, *file.parts]
    end = len(table) + file.size
    for buffer in buffers:
        padding = -end % _ALIGNMENT
        parts += [bytes(padding), buffer]
        end += padding + buffer.nbytes
    if end <= MAX_INLINE_BYTES:
        return Packed(b"".join(parts), -1)
    return Packed(b"", _in_memory(parts))


def unpack(data: memoryview) -> Any:
    """Unpickle the data of a message. Raises whatever the pickle's classes raise, or WireError.

    data  `Message.data`; the value may keep referring to it
    """
    count = _SIZE.unpack_from(data)[0]
    if count * _SIZE.size > len(data):
        raise WireError(f"a table of {count} sizes")
    sizes = [_SIZE.unpack_from(data, (n + 1) * _SIZE.size)[0] for n in range(count)]
    end = (count + 1) * _SIZE.size
    views = []
    for number, size in enumerate(sizes):
        start = end + (-end % _ALIGNMENT if number else 0)
        end = start + size
        views.append(data[start:end])
    if end != len(data):
        raise WireError(f"{len(data)} bytes instead of {end}")
    return pickle.loads(views[0], buffers=views[1:])  # noqa: S301  peers have the same user


def _in_memory(parts: Iterable[Buffer]) -> int:
    """Write data to a new memfd, and seal it. Returns the descriptor. Raises OSError."""
    fd = os.memfd_create("servo-task", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
    try:
        rest = [memoryview(part).cast("B") for part in parts if len(part)]
        while rest:
            written = os.writev(fd, rest[:_MAX_VECTOR])
            done = 0
            while done < len(rest) and written >= rest[done].nbytes:
                written -= rest[done].nbytes
                done += 1
            del rest[:done]
            if written:
                rest[0] = rest[0][written:]
        fcntl.fcntl(fd, ADD_SEALS, _SEALS)
    except BaseException:
        os.close(fd)
        raise
    return fd


def _mapped(fd: int) -> memoryview:
    """Map a received memfd. The mapping lasts as long as an object refers to it. Closes `fd`."""
    try:
        if fcntl.fcntl(fd, _GET_SEALS) & _SEALS != _SEALS:
            raise WireError("a memfd without seals")  # reading it could end this process by SIGBUS
        # ACCESS_COPY is a private mapping: the receiver can write to it, and changes only its copy.
        if sys.version_info >= (3, 13):
            # The mapping does not need the descriptor, and a process may keep thousands of arrays.
            return memoryview(mmap.mmap(fd, 0, access=mmap.ACCESS_COPY, trackfd=False))
        return memoryview(mmap.mmap(fd, 0, access=mmap.ACCESS_COPY))
    finally:
        os.close(fd)


# --- sending and receiving ------------------------------------------------------------------------


def send(
    sock: socket.socket,
    kind: int,
    packed: Packed = NOTHING,
    *,
    credit: int = 0,
    key: int = 0,
    label: str = "",
    flags: int = 0,
    lifeline: int = -1,
) -> None:
    """Send a message; see `Message`. Does not close the memfd. Raises OSError."""
    name = label.encode("utf-8", "backslashreplace")[:_MAX_LABEL_BYTES]
    packet = _HEAD.pack(kind, flags, len(name), credit, key) + name + packed.inline
    fds = [fd for fd in (packed.fd, lifeline) if fd >= 0]
    if fds:
        rights = (socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", fds))
        sock.sendmsg([packet], [rights])
    else:
        sock.send(packet)


def receive(sock: socket.socket) -> Message | None:
    """Receive a message; None at the end of the connection. Raises OSError and WireError."""
    try:
        packet, rights, flags, _ = sock.recvmsg(_MAX_PACKET_BYTES, _RIGHTS_SPACE, _RECEIVE)
    except ConnectionResetError:
        # The other end has closed the connection without reading everything. The kernel reports
        # this once, and before the messages that are still in our buffer.
        packet, rights, flags, _ = sock.recvmsg(_MAX_PACKET_BYTES, _RIGHTS_SPACE, _RECEIVE)
    size = len(packet)
    fds = _descriptors(rights) if rights else []
    if not size:
        return None
    try:
        if flags & (socket.MSG_TRUNC | socket.MSG_CTRUNC) or size < _HEAD.size:
            raise WireError(f"a message of {size} bytes, cut by the kernel (flags {flags:#x})")
        kind, flags, length, credit, key = _HEAD.unpack_from(packet)
        start = _HEAD.size + length
        label = packet[_HEAD.size : start].decode("utf-8", "replace")
        lifeline = fds.pop() if flags & LIFELINE and kind == TASK else -1
        # A bytearray, so that an array that refers to it can be written to.
        data = _mapped(fds.pop()) if fds else memoryview(bytearray(packet[start:]))
        return Message(kind, flags, credit, key, label, data, lifeline)
    finally:
        for fd in fds:
            os.close(fd)


def _descriptors(rights: Sequence[tuple[int, int, bytes]]) -> list[int]:
    fds = array.array("i")
    for level, kind, data in rights:
        if level == socket.SOL_SOCKET and kind == socket.SCM_RIGHTS:
            fds.frombytes(data[: len(data) - len(data) % fds.itemsize])
    return list(fds)


def peer(sock: socket.socket) -> tuple[int, int]:
    """The pid and the uid of the process at the other end (SO_PEERCRED). Raises OSError."""
    if not hasattr(socket, "SO_PEERCRED"):
        raise OSError("this system does not tell who is at the other end of a socket")
    form = struct.Struct("3i")
    data = sock.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, form.size)
    pid, uid, _ = form.unpack(data)
    return pid, uid


def label_of(function: Any) -> str:
    """The name of a function, for operators."""
    while hasattr(function, "func") and not hasattr(function, "__qualname__"):
        function = function.func  # functools.partial
    name = getattr(function, "__qualname__", type(function).__qualname__)
    return f"{getattr(function, '__module__', None) or '?'}.{name}"
