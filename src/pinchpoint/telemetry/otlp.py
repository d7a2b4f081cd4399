"""Source `otlp`: takes the spans that the service and what stands before it export during a run.

Listens for OTLP over HTTP (/v1/traces, protobuf or JSON, plain or gzip) and over gRPC, and appends each span to a part
file of the run. A span whose trace id is one of ours (traceids) gets the number of its request. Without the extra
`otlp` only JSON over HTTP can be read.

Whoever sends is a stranger: the number of connections, the length of an export before and after decompression, and the
number of spans in a run are bounded, and what is refused is answered as OTLP wants it and counted by reason. Nothing
that is sent is executed, logged or kept beyond telemetry.span's bounds.
"""

import http.server
import socket
import socketserver
import threading
import time
import zlib
from collections import Counter
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from http import HTTPStatus
from io import BufferedIOBase
from pathlib import Path
from typing import TYPE_CHECKING, Any

import msgspec

from pinchpoint.catalog import format_labels
from pinchpoint.clock import monotonic_ns, realtime_offset_ns
from pinchpoint.errors import UsageError
from pinchpoint.model import SPAN_COLUMNS
from pinchpoint.parts import PartWriter
from pinchpoint.telemetry.config import Reading
from pinchpoint.telemetry.otlp_json import NotSpansError, spans_in_json
from pinchpoint.telemetry.otlp_protobuf import MISSING, answer, failure, require_protobuf, spans_in_protobuf
from pinchpoint.telemetry.span import Span, reasons
from pinchpoint.traceids import request_of

if TYPE_CHECKING:
    import grpc

HTTP_PORT, GRPC_PORT = 4318, 4317
"""Where exporters send by default (OTLP specification 1.x, "OTLP/HTTP" and "OTLP/gRPC")."""
TRACES_PATH = "/v1/traces"
MAX_EXPORT_BYTES = 8 << 20
"""Our bound, before and after decompression. An SDK's batch has 512 spans, some 400 KiB; gRPC's own bound is 4 MiB."""
MAX_GRPC_BYTES = 4 << 20
MAX_SPANS = 5_000_000
"""Of a run; our bound. About 100 bytes each on disk."""
MAX_CONNECTIONS = 16
MAX_CALLS = 8
DECODERS = 2
READ_BYTES = 1 << 16
RECEIVE_LIMIT_S = 10.0
"""For one export to arrive; the default of exporters is as long (OTEL_EXPORTER_OTLP_TIMEOUT)."""
MAX_CHUNK_LINE = 1024
STOP_LIMIT_S = 0.5
EXPORT_DELAY_S = 5.0
"""An SDK sends what it gathered after so long (OTEL_BSP_SCHEDULE_DELAY): a receiver should outlive the load by it."""
JSON_TYPE, PROTOBUF_TYPE = "application/json", "application/x-protobuf"
GRPC_METHOD = "/opentelemetry.proto.collector.trace.v1.TraceService/Export"

Decoder = Callable[[bytes], tuple[list[Span], list[str]]]


class OtlpReceiver:
    """Made by `listen`. Read as a source it tells counts; spans go to the part file as they come.

    http_url, grpc_endpoint: where to send; grpc_endpoint is None without the extra. notes: what cannot be received.
    """

    name = "otlp"

    def __init__(self, part: Path, salt: int | None) -> None:
        self._salt = salt
        self._writer = PartWriter(part, SPAN_COLUMNS)
        self._lock = threading.Lock()
        self._spans = self._ours = 0
        self._refused: Counter[str] = Counter()
        self._told: Counter[str] = Counter()
        self._failure: OSError | None = None
        self._closed = False
        self._http: _HttpServer | None = None
        self._grpc: grpc.Server | None = None
        self.http_url = ""
        self.grpc_endpoint: str | None = None
        self.notes: tuple[str, ...] = ()

    def serve(self, host: str, http_port: int, grpc_port: int) -> None:
        """Raises UsageError when a port is taken or the host is not this one."""
        self._http = _HttpServer(_address(host, http_port), self)
        self.http_url = f"http://{_bracketed(host)}:{self._http.server_address[1]}"
        threading.Thread(target=self._http.serve_forever, args=(STOP_LIMIT_S / 2,), daemon=True).start()
        try:
            require_protobuf()
            self._grpc, port = _grpc_server(host, grpc_port, self)
            self.grpc_endpoint = f"{_bracketed(host)}:{port}"
        except UsageError as error:
            if str(error) != MISSING:
                self.close()
                raise
            self.notes = (MISSING,)

    def take(self, export: bytes, decode: Decoder) -> tuple[int, str]:
        """Keeps the spans of an export. Returns how many of them were refused, and why. Raises NotSpansError."""
        try:
            spans, refused = decode(export)
        except NotSpansError:
            self.refuse("unreadable")
            raise
        received_ns = monotonic_ns()
        offset_ns, _ = realtime_offset_ns()
        rows = [self._row(span, offset_ns, received_ns) for span in spans]
        with self._lock:
            room = 0 if self._closed or self._failure else MAX_SPANS - self._spans
            if len(rows) > room:
                refused += [f"this run keeps {MAX_SPANS} spans"] * (len(rows) - room)
                rows = rows[:room]
            self._spans += len(rows)
            self._ours += sum(row[11] is not None for row in rows)
            self._refused["span"] += len(refused)
            try:
                self._writer.append(rows)
            except OSError as error:
                self._failure = error
        return len(refused), reasons(refused)

    def refuse(self, reason: str) -> None:
        """Counts an export that could not be read."""
        with self._lock:
            self._refused[reason] += 1

    def read(self) -> tuple[int, list[Reading]]:
        """Counts so far, and the refusals since the last reading. Raises OSError when spans could not be written."""
        with self._lock:
            if self._failure is not None:
                raise self._failure
            if not self._closed:
                self._writer.flush()
            readings = [
                Reading("otlp_spans_total", None, "", float(self._spans)),
                Reading("otlp_spans_of_requests_total", None, "", float(self._ours)),
            ]
            for reason, count in (self._refused - self._told).items():
                readings.append(Reading("otlp_refused", None, format_labels({"what": reason}), float(count)))
            self._told = self._refused.copy()
        return monotonic_ns(), readings

    def close(self) -> None:
        """Stops listening, and writes what is still in memory. Call from any thread; more than once is harmless."""
        if self._grpc is not None:
            self._grpc.stop(STOP_LIMIT_S).wait()
        if self._http is not None:
            self._http.shutdown()
            self._http.server_close()
        self._grpc = self._http = None
        with self._lock:
            self._closed = True
            self._writer.close()

    def _row(self, span: Span, offset_ns: int, received_ns: int) -> tuple[Any, ...]:
        """In the order of model.SPAN_COLUMNS."""
        return (
            *span[:7],
            span.start_unix_ns - offset_ns,
            span.end_unix_ns - offset_ns,
            span.status,
            received_ns,
            request_of(self._salt, span.trace_id) if self._salt is not None else None,
            span.attributes_json,
        )


def listen(
    part: Path,
    salt: int | None,
    *,
    host: str = "127.0.0.1",
    http_port: int = HTTP_PORT,
    grpc_port: int = GRPC_PORT,
) -> OtlpReceiver:
    """A receiver that is ready. part: file for the spans, parts/spans-otlp.arrows of a run. salt: traceids.salt_of the
    run's id, when its requests carry a traceparent. Port 0: any. Raises UsageError when a port cannot be had."""
    receiver = OtlpReceiver(part, salt)
    try:
        receiver.serve(host, http_port, grpc_port)
    except UsageError:
        receiver.close()
        raise
    return receiver


def _bracketed(host: str) -> str:
    return f"[{host}]" if ":" in host else host


def _taken(host: str, port: int, why: str) -> UsageError:
    return UsageError(
        f"cannot receive spans on {_bracketed(host)}:{port} ({why}); stop the collector that listens there or choose "
        "another port"
    )


# -- HTTP --------------------------------------------------------------------------------------------------------------


def _address(host: str, port: int) -> tuple[socket.AddressFamily, tuple[Any, ...]]:
    try:
        family, _, _, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)[0]
    except OSError as error:
        raise _taken(host, port, error.strerror or "no such host") from None
    return family, address


class _HttpServer(socketserver.ThreadingMixIn, socketserver.TCPServer):
    daemon_threads = True
    block_on_close = False
    allow_reuse_address = True
    request_queue_size = MAX_CONNECTIONS

    def __init__(self, place: tuple[socket.AddressFamily, tuple[Any, ...]], receiver: OtlpReceiver) -> None:
        self.address_family, address = place
        self.receiver = receiver
        self._slots = threading.BoundedSemaphore(MAX_CONNECTIONS)
        try:
            super().__init__(address, _Handler)
        except OSError as error:
            raise _taken(address[0], address[1], error.strerror or str(error)) from None

    def process_request(self, request: Any, client_address: Any) -> None:
        if self._slots.acquire(blocking=False):
            super().process_request(request, client_address)
        else:
            self.receiver.refuse("too-many-connections")
            self.shutdown_request(request)

    def process_request_thread(self, request: Any, client_address: Any) -> None:
        try:
            super().process_request_thread(request, client_address)
        finally:
            self._slots.release()

    def handle_error(self, request: Any, client_address: Any) -> None:
        """A sender that hung up in the middle is no event of ours."""


class _RefusedError(Exception):
    def __init__(self, status: HTTPStatus, reason: str, words: str) -> None:
        super().__init__(words)
        self.status, self.reason = status, reason


class _Handler(http.server.BaseHTTPRequestHandler):
    """One export on one connection, which is closed behind it: no stranger keeps a thread."""

    server: _HttpServer  # pyright: ignore[reportIncompatibleVariableOverride]
    protocol_version = "HTTP/1.1"
    timeout = RECEIVE_LIMIT_S
    server_version, sys_version = "pinchpoint", ""

    def do_POST(self) -> None:
        kind = (self.headers.get("Content-Type") or "").partition(";")[0].strip().lower()
        try:
            if self.path.partition("?")[0] != TRACES_PATH:
                raise _RefusedError(HTTPStatus.NOT_FOUND, "other-path", f"only {TRACES_PATH} is received here")
            refused, why = self.server.receiver.take(self._export(), _decoder(kind))
        except NotSpansError as error:
            self._refuse(kind, HTTPStatus.BAD_REQUEST, str(error))
        except _RefusedError as refusal:
            self.server.receiver.refuse(refusal.reason)
            self._refuse(kind, refusal.status, str(refusal))
        else:
            if kind == JSON_TYPE:
                partial = {"rejectedSpans": str(refused), "errorMessage": why}
                self._send(HTTPStatus.OK, kind, msgspec.json.encode({"partialSuccess": partial} if refused else {}))
            else:
                self._send(HTTPStatus.OK, kind, answer(refused, why))

    def _refuse(self, kind: str, status: HTTPStatus, words: str) -> None:
        body = failure(words) if kind == PROTOBUF_TYPE else msgspec.json.encode({"message": words})
        self._send(status, PROTOBUF_TYPE if kind == PROTOBUF_TYPE else JSON_TYPE, body)

    def _send(self, status: HTTPStatus, kind: str, body: bytes) -> None:
        self.send_response(status)
        self.send_header("Content-Type", kind)
        self.send_header("Content-Length", str(len(body)))
        self.send_header("Connection", "close")
        self.end_headers()
        self.wfile.write(body)

    def _export(self) -> bytes:
        """The body, decompressed. Raises _RefusedError when it is too long, too late or in a form unknown."""
        coding = (self.headers.get("Content-Encoding") or "identity").strip().lower()
        if coding not in ("identity", "gzip"):
            raise _RefusedError(HTTPStatus.UNSUPPORTED_MEDIA_TYPE, "encoding", f"encoding {coding[:32]} is not read")
        body = _body(self.rfile, self.headers.get("Content-Length"), self.headers.get("Transfer-Encoding"))
        return _unzipped(body) if coding == "gzip" else body

    def log_message(self, format: str, *args: Any) -> None:
        """Nothing a stranger sends is printed."""


def _decoder(kind: str) -> Decoder:
    if kind == JSON_TYPE:
        return spans_in_json
    if kind != PROTOBUF_TYPE:
        words = f"content type {kind[:64]!r} is not read; send {PROTOBUF_TYPE} or {JSON_TYPE}"
        raise _RefusedError(HTTPStatus.UNSUPPORTED_MEDIA_TYPE, "content-type", words)
    try:
        require_protobuf()
    except UsageError as error:
        raise _RefusedError(HTTPStatus.UNSUPPORTED_MEDIA_TYPE, "no-protobuf", str(error)) from None
    return spans_in_protobuf


def _too_large() -> _RefusedError:
    words = f"an export of more than {MAX_EXPORT_BYTES >> 20} MiB is not read; send smaller batches"
    return _RefusedError(HTTPStatus.REQUEST_ENTITY_TOO_LARGE, "too-large", words)


def _cut() -> _RefusedError:
    return _RefusedError(HTTPStatus.BAD_REQUEST, "cut", "the export was cut off")


def _body(file: BufferedIOBase, length: str | None, coding: str | None) -> bytes:
    """Of a known length, or in chunks (RFC 9112, section 7.1), as Node.js sends what it compresses."""
    deadline_s = time.monotonic() + RECEIVE_LIMIT_S
    if coding is not None and coding.strip().lower() == "chunked":
        return _chunked(file, deadline_s)
    if length is None or not (length.isascii() and length.isdigit()):
        raise _RefusedError(HTTPStatus.LENGTH_REQUIRED, "no-length", "the export has no Content-Length")
    if len(length) > len(str(MAX_EXPORT_BYTES)) or int(length) > MAX_EXPORT_BYTES:
        raise _too_large()
    return _exactly(file, int(length), deadline_s)


def _exactly(file: BufferedIOBase, count: int, deadline_s: float) -> bytes:
    received = bytearray()
    while len(received) < count:
        try:
            block = file.read1(min(READ_BYTES, count - len(received)))
        except TimeoutError:
            block = b""
        if not block or time.monotonic() > deadline_s:
            raise _cut()
        received += block
    return bytes(received)


def _chunked(file: BufferedIOBase, deadline_s: float) -> bytes:
    received = bytearray()
    while True:
        try:
            line = file.readline(MAX_CHUNK_LINE)
            size = int(line.partition(b";")[0].strip(), 16)
        except (TimeoutError, ValueError):
            raise _cut() from None
        if size < 0:
            raise _cut()
        if len(received) + size > MAX_EXPORT_BYTES:
            raise _too_large()
        if size == 0:
            return bytes(received)
        received += _exactly(file, size, deadline_s)
        _exactly(file, 2, deadline_s)  # the line end behind a chunk


def _unzipped(body: bytes) -> bytes:
    """Never more than the bound, whatever a few bytes promise to become."""
    decompressor = zlib.decompressobj(wbits=zlib.MAX_WBITS | 16)
    try:
        plain = decompressor.decompress(body, MAX_EXPORT_BYTES)
    except zlib.error as error:
        raise _RefusedError(HTTPStatus.BAD_REQUEST, "not-gzip", f"not gzip ({error})") from None
    if decompressor.unconsumed_tail:
        raise _too_large()
    if not decompressor.eof:
        raise _cut()
    return plain


# -- gRPC --------------------------------------------------------------------------------------------------------------


def _grpc_server(host: str, port: int, receiver: OtlpReceiver) -> "tuple[grpc.Server, int]":
    try:
        import grpc
    except ImportError:
        raise UsageError(MISSING) from None

    def export(message: bytes, context: grpc.ServicerContext) -> bytes:
        try:
            return answer(*receiver.take(message, spans_in_protobuf))
        except NotSpansError as error:
            context.abort(grpc.StatusCode.INVALID_ARGUMENT, str(error))
            raise  # abort has raised already

    class Service(grpc.GenericRpcHandler):
        def service(self, handler_call_details: grpc.HandlerCallDetails) -> grpc.RpcMethodHandler | None:
            method: Any = handler_call_details.method
            return grpc.unary_unary_rpc_method_handler(export) if method == GRPC_METHOD else None

    server = grpc.server(
        ThreadPoolExecutor(DECODERS, "otlp-grpc"),
        options=[("grpc.max_receive_message_length", MAX_GRPC_BYTES), ("grpc.so_reuseport", 0)],
        maximum_concurrent_rpcs=MAX_CALLS,
    )
    server.add_generic_rpc_handlers((Service(),))
    try:
        bound = server.add_insecure_port(f"{_bracketed(host)}:{port}")
    except RuntimeError:
        bound = 0
    if not bound:
        raise _taken(host, port, "the port is in use, or the host is not this one")
    server.start()
    return server, bound
