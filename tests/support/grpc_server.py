"""A real grpcio server whose answers are written in the test: bytes in, any number of bytes out."""

from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import grpc

from tests.support.tls import Authority

Script = Callable[[bytes, Any], Iterable[bytes]]
"""(body, context) -> messages. It may abort by the context."""
THREADS = 16
UNARY = ("/ModelInfer", "/ModelMetadata", "/Predict", "/unary")


class _Handler(grpc.GenericRpcHandler):
    def __init__(
        self, script: Script | dict[str, Script], seen: list[tuple[str, dict[str, str], float | None]]
    ) -> None:
        self._script = script
        self._seen = seen

    def service(self, handler_call_details: Any) -> Any:
        method = handler_call_details.method
        metadata = dict(handler_call_details.invocation_metadata)
        script = self._script
        if isinstance(script, dict):
            script = script.get(method.rpartition("/")[2])  # pyright: ignore[reportAssignmentType]
            if script is None:
                return None

        def many(requests: Any, context: Any) -> Iterable[bytes]:
            bodies = list(requests)
            self._seen.append((method, metadata, context.time_remaining()))
            assert len(bodies) == 1
            yield from script(bodies[0], context)

        def one(body: bytes, context: Any) -> bytes:
            self._seen.append((method, metadata, context.time_remaining()))
            return next(iter(script(body, context)))

        if method.endswith(UNARY):
            return grpc.unary_unary_rpc_method_handler(one)
        return grpc.stream_stream_rpc_method_handler(many)


class GrpcServer:
    """As a context manager. `port` is given to start again on one that was used before. `seen`: method, metadata and
    time left of each call. script: of all methods, or by their last name; others are UNIMPLEMENTED."""

    def __init__(
        self, script: Script | dict[str, Script], *, port: int = 0, authority: Authority | None = None
    ) -> None:
        self.seen: list[tuple[str, dict[str, str], float | None]] = []
        self._server = grpc.server(
            ThreadPoolExecutor(THREADS), handlers=[_Handler(script, self.seen)], options=[("grpc.so_reuseport", 0)]
        )
        address = f"127.0.0.1:{port}"
        if authority is None:
            self.port = self._server.add_insecure_port(address)
        else:
            pair = (authority.key_file.read_bytes(), authority.certificate_file.read_bytes())
            self.port = self._server.add_secure_port(address, grpc.ssl_server_credentials([pair]))
        self.url = f"{'grpc' if authority is None else 'grpcs'}://127.0.0.1:{self.port}"

    def __enter__(self) -> "GrpcServer":
        self._server.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()

    def stop(self) -> None:
        """At once: calls in flight are cut off."""
        self._server.stop(None).wait()
