"""gRPC calls for the load loop: grpcio does them on a thread of its own, and the loop reads what came from a queue.

grpcio keeps its sockets to itself, so there are no kernel stamps: an instant is when its thread saw a message, and is
marked as user-space. How late that thread runs is known for the beginning of each call (`RpcExchange.stamp_error_ns`).

The thread runs asyncio, because grpcio's other interface wants a thread for each stream. It writes to an eventfd that
the loop has in its epoll, so a call costs the loop what a read of a socket costs. Bytes go in and out as they are; what
they mean is the target's business.

Needs the extra `grpc`; grpcio is imported when the first `Rpc` is made, and in no load process without gRPC targets.
"""

import asyncio
import contextlib
import functools
import gc
import itertools
import os
import socket
import ssl
import threading
from collections import deque
from collections.abc import Sequence
from typing import Any, Literal

import msgspec

from pinchpoint.clock import monotonic_ns
from pinchpoint.errors import UsageError
from pinchpoint.load.exchange import Exchange, clean
from pinchpoint.load.wire import Endpoint
from pinchpoint.schedule import ScheduledRequest
from pinchpoint.targets.protobufs import MISSING_ERROR
from pinchpoint.targets.target import ERROR_TEXT_CHARS, Target

RECONNECT_MS = 100
"""First pause of grpcio before it connects again; its own second, which doubles to two minutes, would make an outage of
the service longer than it was."""
RECONNECT_MAX_MS = 1000
CLOSE_TIMEOUT_S = 5.0
MS_PER_S = 1000
CONNECT_S = 10.0
ENDS_PER_COLLECTION = 256
"""grpcio's calls refer to themselves. Load processes collect no garbage while they load, so the thread collects the
youngest of it after so many ends, which takes well under a millisecond."""
PUSHBACK_KEY = "grpc-retry-pushback-ms"
"""Trailing metadata in which a service says when to try again (gRPC proposal A6)."""
CONNECT_FAILURES = ("failed to connect", "dns resolution", "handshake")
LOCAL_FAILURES = (
    *CONNECT_FAILURES,
    "connection reset",
    "connection refused",
    "connection dropped",
    "socket closed",
    "endpoint closed",
    "goaway",
    "broken pipe",
    "stream removed",
    "transport closed",
    "ping timeout",
)
"""Parts of the words that grpcio has for failures of the connection, in lower case. Their status is UNAVAILABLE, as is
that of a service that says itself that it is overloaded."""
OURS = ("too many open files", "cannot assign requested address", "no buffer space")
"""Parts of the words for failures that say something of this host and nothing of the service."""

Kind = Literal["sent", "connected", "message", "end"]


class CallEnd(msgspec.Struct, frozen=True):
    """code: name of the gRPC status, OK for a good end. local: grpcio's own verdict on the connection, and nothing that
    the service said. retry_after_s: what the service asks for, None: nothing."""

    code: str
    details: str = ""
    local: bool = False
    retry_after_s: float | None = None


class RpcEvent(msgspec.Struct, frozen=True, gc=False):
    """Something that happened to the call `key`. stamp_ns: monotonic, of the gRPC thread. payload: bytes of a message,
    or a CallEnd; else None."""

    key: int
    kind: Kind
    stamp_ns: int
    payload: Any = None


def status_of(end: CallEnd, messages: int) -> tuple[str, str, str | None]:
    """(status, error, phase) of a call that did not end well. messages: how many of the answer had come.

    Codes as gRPC documents them (statuscodes.md): RESOURCE_EXHAUSTED and UNAVAILABLE are what an overloaded service
    says, and it is to be asked again later; the other codes are answers. After the first message every code is an error
    inside of the answer.
    """
    said = f"gRPC {end.code}: {clean(end.details)}"[:ERROR_TEXT_CHARS]
    if end.code == "DEADLINE_EXCEEDED":
        return "timeout", said, "total"
    if end.local:
        if any(words in end.details.lower() for words in OURS):
            return "dropped", said, None
        if messages:
            return "truncated", said, None
        connecting = any(words in end.details.lower() for words in CONNECT_FAILURES)
        return "transport_error", said, "connect" if connecting else "headers"
    if messages:
        return "stream_error", said, None
    if end.code in ("RESOURCE_EXHAUSTED", "UNAVAILABLE"):
        return "rejected", said, None
    return "http_error", said, None


class RpcExchange(Exchange):
    """One call and its answer, in the form that the loop and the records know from HTTP.

    All stamps are of user space. `connect_ns` and `connected_ns` are known where the call has a channel of its own.
    """

    __slots__ = ("handed_ns", "key", "messages")
    stamps_bounded = False

    def __init__(self, row: ScheduledRequest, scheduled_ns: int, reader: Target, *, keep_text: bool = False) -> None:
        super().__init__(row, scheduled_ns, reader, keep_text=keep_text)
        self.key: int | None = None
        """Of the call that carries it at the moment."""
        self.handed_ns = 0
        """When it was handed to gRPC; of a further attempt later than `sent_ns`."""
        self.messages = 0
        self.stream = reader.stream
        self._http = self._put_by = None  # no bytes of HTTP are read, and none put by

    def happened(self, event: RpcEvent) -> bool:
        """Takes an event of its call. True when the call has ended."""
        stamp_ns = event.stamp_ns
        match event.kind:
            case "message":
                self._message(event.payload, stamp_ns)
            case "sent":
                self.stamp_error_ns = max(0, stamp_ns - self.handed_ns)
            case "connected":
                self.connected_ns = stamp_ns
            case "end":
                self._ended(event.payload, stamp_ns)
                return True
        return False

    def _message(self, data: bytes, stamp_ns: int) -> None:
        previous_ns = self._latest_ns
        self._stamp_ns = self._last_stamp_ns = max(stamp_ns, previous_ns)
        self.reads += 1
        self.stamps_user += 1
        self.messages += 1
        self.bytes_in += len(data)
        self.headers_ns = self.headers_ns or self._stamp_ns
        if self.first_byte_ns is None:
            self.first_byte_ns = self._stamp_ns
        if self.stream:
            self._on_event(b"", data)
        else:
            self._body += data

    def _ended(self, end: CallEnd, stamp_ns: int) -> None:
        self.end_ns = max(stamp_ns, self._latest_ns)
        self.complete = True
        self.retry_after_s = end.retry_after_s
        if self.status is not None:
            return
        if end.code != "OK":
            self.status, self.error, self.phase = status_of(end, self.messages)
        elif self.error is not None:  # inside of a stream
            self.status, _, self.error = self.error.partition(": ")
        elif not self.stream:
            self._settle_plain()
        elif self.chunk_ns:
            self.status = "ok"
        else:
            self.status, self.error = "truncated", "the stream ended without any text"


class _Call(msgspec.Struct, frozen=True):
    key: int
    method: str
    body: bytes
    backend: int
    streaming: bool
    timeout_s: float | None
    metadata: tuple[tuple[str, str], ...]


class Rpc:
    """Calls to the backends of one load process. Not thread-safe: one loop sends and takes."""

    def __init__(
        self,
        endpoints: Sequence[Endpoint],
        *,
        channels: int = 1,
        root_certificates: bytes | None = None,
        new_connections: bool = False,
        connect_s: float = CONNECT_S,
    ) -> None:
        """channels: for each backend, each a connection of its own; calls take them in turn. new_connections: each call
        has its own, which is connected first. root_certificates: PEM; None: those that grpcio brings. connect_s: after
        that long an attempt to connect has failed.

        Raises UsageError when grpcio is missing, and for a backend behind a proxy.
        """
        try:
            import grpc
            import grpc.aio
        except ImportError:
            raise UsageError(MISSING_ERROR) from None
        self._grpc: Any = grpc
        self._endpoints = tuple(endpoints)
        self._addresses = [address_of(endpoint) for endpoint in endpoints]
        self._channels_each = channels
        self._new_connections = new_connections
        self._connect_ms = max(RECONNECT_MS, int(connect_s * MS_PER_S))
        self._credentials: Any = (
            grpc.ssl_channel_credentials(root_certificates) if any(endpoint.tls for endpoint in endpoints) else None
        )
        self.fd = os.eventfd(0, os.EFD_NONBLOCK | os.EFD_CLOEXEC)
        """Readable when there is something to take."""
        self._events: deque[RpcEvent] = deque()
        self._signalled = False
        self._last_key = self._ended_calls = 0
        self._tasks: dict[int, asyncio.Task[tuple[CallEnd, int]]] = {}
        """Of the thread alone, as all that follows."""
        self._channels: list[list[Any]] = []
        self._turns = itertools.count()
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._run, name="grpc", daemon=True)
        self._thread.start()
        if not new_connections:
            asyncio.run_coroutine_threadsafe(self._open_all(), self._loop).result()

    # -- called by the load loop -----------------------------------------------------------------------------------

    @property
    def connections(self) -> int:
        """Channels that are open."""
        return len(self._tasks) if self._new_connections else len(self._addresses) * self._channels_each

    def send(
        self,
        method: str,
        body: bytes,
        *,
        backend: int = 0,
        streaming: bool = False,
        timeout_s: float | None = None,
        metadata: Sequence[tuple[str, str]] = (),
    ) -> int:
        """Begins a call and returns its key. Exactly one "end" follows, whatever becomes of the call, unless the whole
        is closed before. metadata: names in lower case."""
        self._last_key += 1
        call = _Call(self._last_key, method, body, backend, streaming, timeout_s, tuple(metadata))
        self._loop.call_soon_threadsafe(self._start, call)
        return call.key

    def take(self) -> list[RpcEvent]:
        """What has happened since the last time, in order; to be called when `fd` is readable."""
        with contextlib.suppress(BlockingIOError):
            os.eventfd_read(self.fd)
        # Cleared before the queue is emptied: what is added later signals again, and nothing is left lying.
        self._signalled = False
        events = self._events
        return [events.popleft() for _ in range(len(events))]

    def cancel(self, key: int) -> None:
        """Withdraws a call, as a user does who gives up; it still ends. One that has ended is left alone."""
        self._loop.call_soon_threadsafe(self._cancel, key)

    def close(self) -> None:
        """Withdraws all calls and ends the thread."""
        if self._loop.is_closed():
            return
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join(CLOSE_TIMEOUT_S)
        if not self._thread.is_alive():  # else it still writes there
            os.close(self.fd)

    # -- on the thread -----------------------------------------------------------------------------------------------

    def _run(self) -> None:
        asyncio.set_event_loop(self._loop)
        self._loop.run_forever()
        self._loop.run_until_complete(self._close_all())
        self._loop.close()

    async def _open_all(self) -> None:
        """All channels begin to connect, so that the first calls do not wait for it."""
        for backend in range(len(self._addresses)):
            self._channels.append([self._open(backend) for _ in range(self._channels_each)])
            for channel in self._channels[backend]:
                channel.get_state(try_to_connect=True)

    async def _close_all(self) -> None:
        tasks = list(self._tasks.values())
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        for channel in itertools.chain.from_iterable(self._channels):
            await channel.close()

    def _open(self, backend: int) -> Any:
        endpoint, address = self._endpoints[backend], self._addresses[backend]
        options = [
            ("grpc.default_authority", endpoint.host_header),
            ("grpc.use_local_subchannel_pool", 1),  # else channels to one address share a connection
            ("grpc.enable_http_proxy", 0),  # what the environment says is not part of the plan
            ("grpc.enable_retries", 0),  # the plan's retries are counted
            ("grpc.initial_reconnect_backoff_ms", RECONNECT_MS),
            ("grpc.max_reconnect_backoff_ms", RECONNECT_MAX_MS),
            ("grpc.min_reconnect_backoff_ms", self._connect_ms),  # in spite of its name: of an attempt
            ("grpc.max_receive_message_length", -1),
            ("grpc.max_send_message_length", -1),
            ("grpc.primary_user_agent", "pinchpoint"),
        ]
        if not endpoint.tls:
            return self._grpc.aio.insecure_channel(address, options)
        # The address is an IP address already: the certificate is of the host that the plan names.
        options.append(("grpc.ssl_target_name_override", endpoint.server_name))
        return self._grpc.aio.secure_channel(address, self._credentials, options)

    def _start(self, call: _Call) -> None:
        task = self._loop.create_task(self._whole_call(call))
        self._tasks[call.key] = task
        # Not in the coroutine: a call that is withdrawn at once never gets there, and has to end, too.
        task.add_done_callback(functools.partial(self._ended, call.key))

    def _cancel(self, key: int) -> None:
        task = self._tasks.get(key)
        if task is not None:
            task.cancel()

    def _ended(self, key: int, task: "asyncio.Task[tuple[CallEnd, int]]") -> None:
        del self._tasks[key]
        end, stamp_ns = CallEnd("CANCELLED", "the call was withdrawn"), monotonic_ns()
        if not task.cancelled():
            problem = task.exception()
            if problem is None:
                end, stamp_ns = task.result()
            else:
                end = CallEnd("UNKNOWN", f"{type(problem).__name__}: {problem}", local=True)
        self._tell(key, "end", stamp_ns, end)
        self._ended_calls += 1
        if self._ended_calls % ENDS_PER_COLLECTION == 0 and not gc.isenabled():
            gc.collect(0)

    async def _whole_call(self, call: _Call) -> tuple[CallEnd, int]:
        """How it ended, and when."""
        self._tell(call.key, "sent", monotonic_ns(), wake=False)
        if not self._new_connections:
            channels = self._channels[call.backend]
            return await self._exchange(channels[next(self._turns) % len(channels)], call)
        channel = self._open(call.backend)
        try:
            await self._connect(channel, call.key)
            return await self._exchange(channel, call)
        finally:
            await channel.close()

    async def _connect(self, channel: Any, key: int) -> None:
        """Until the channel is connected or has failed to; a call on one that has failed ends at once, and says why."""
        states = self._grpc.ChannelConnectivity
        state = channel.get_state(try_to_connect=True)
        while state not in (states.READY, states.TRANSIENT_FAILURE):
            await channel.wait_for_state_change(state)
            state = channel.get_state(try_to_connect=True)
        if state is states.READY:
            self._tell(key, "connected", monotonic_ns())

    async def _exchange(self, channel: Any, call: _Call) -> tuple[CallEnd, int]:
        try:
            if call.streaming:
                return await self._stream(channel, call)
            answer = await channel.unary_unary(call.method)(call.body, timeout=call.timeout_s, metadata=call.metadata)
        except self._grpc.RpcError as error:
            stamp_ns = monotonic_ns()
            return self._failed(channel, error), stamp_ns
        stamp_ns = monotonic_ns()
        self._tell(call.key, "message", stamp_ns, answer, wake=False)
        return CallEnd("OK"), stamp_ns

    async def _stream(self, channel: Any, call: _Call) -> tuple[CallEnd, int]:
        """One request, many answers. To the service it looks like a stream of requests that ends behind the first."""
        answers = channel.unary_stream(call.method)(call.body, timeout=call.timeout_s, metadata=call.metadata)
        read, end_mark = answers.read, self._grpc.aio.EOF
        while (message := await read()) is not end_mark:
            self._tell(call.key, "message", monotonic_ns(), message)
        stamp_ns = monotonic_ns()
        code = await answers.code()
        return CallEnd(code.name, await answers.details() or ""), stamp_ns

    def _failed(self, channel: Any, error: Any) -> CallEnd:
        code, details = error.code(), error.details() or ""
        local = False
        if code is self._grpc.StatusCode.UNAVAILABLE:
            ready = channel.get_state() is self._grpc.ChannelConnectivity.READY
            local = not ready or any(words in details.lower() for words in LOCAL_FAILURES)
        pushback = str(dict(error.trailing_metadata() or ()).get(PUSHBACK_KEY, ""))
        retry_after_s = int(pushback) / MS_PER_S if pushback.isdecimal() and pushback.isascii() else None
        return CallEnd(code.name, details, local, retry_after_s)

    def _tell(self, key: int, kind: Kind, stamp_ns: int, payload: Any = None, *, wake: bool = True) -> None:
        """wake: False where another event of the same call follows at once, or nobody waits for this one."""
        self._events.append(RpcEvent(key, kind, stamp_ns, payload))
        if wake and not self._signalled:
            self._signalled = True
            os.eventfd_write(self.fd, 1)


def over_grpc(target: Target) -> bool:
    """A plug-in's target that is silent about its transport speaks HTTP."""
    return getattr(target, "transport", "http") == "grpc"


def trusted(tls: ssl.SSLContext) -> bytes | None:
    """The authorities that a context trusts, in PEM form; None when it finds them one by one, as they are needed."""
    found = tls.get_ca_certs(binary_form=True)
    return "".join(map(ssl.DER_cert_to_PEM_cert, found)).encode() or None


def address_of(endpoint: Endpoint) -> str:
    """As gRPC names it. Raises UsageError for one that is reached through an HTTP proxy."""
    if endpoint.tunnel or endpoint.path_prefix.startswith("http://"):
        raise UsageError("gRPC services are not loaded through an HTTP proxy; leave the proxy out")
    if endpoint.family == socket.AF_UNIX:
        return f"unix:{endpoint.sockaddr}"
    host, port = endpoint.sockaddr[:2]
    return f"ipv6:[{host}]:{port}" if endpoint.family == socket.AF_INET6 else f"ipv4:{host}:{port}"
