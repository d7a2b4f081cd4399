"""What a service says about its models over gRPC, asked once before the load."""

import select
import ssl
import time
from collections.abc import Sequence

from pinchpoint.load.rpc import CallEnd, Rpc, address_of, trusted
from pinchpoint.load.wire import Endpoint
from pinchpoint.targets import grpc_kserve
from pinchpoint.targets.registry import kind_of
from pinchpoint.targets.target import TargetSpec

KSERVE = "kserve-grpc"
ASK_TIMEOUT_S = 5.0
POLL_S = 0.1


def described(
    specs: Sequence[TargetSpec],
    endpoints: Sequence[Endpoint],
    headers: Sequence[tuple[str, str]],
    tls: ssl.SSLContext | None,
) -> tuple[TargetSpec, ...]:
    """The specs, those of KServe with the names and shapes of the tensors that their model declares.

    The first backend is asked for all. A service that does not answer changes nothing: the load will show what it says
    to requests. Raises UsageError when gRPC is wanted and cannot be had: without the extra `grpc`, or through a proxy.
    """
    if all(kind_of(spec.api).transport == "http" for spec in specs):
        return tuple(specs)
    for endpoint in endpoints:
        address_of(endpoint)
    rpc = Rpc(endpoints[:1], root_certificates=trusted(tls) if tls is not None else None, connect_s=ASK_TIMEOUT_S)
    try:
        return tuple(_described(rpc, spec, headers) if spec.api == KSERVE else spec for spec in specs)
    finally:
        rpc.close()


def _described(rpc: Rpc, spec: TargetSpec, headers: Sequence[tuple[str, str]]) -> TargetSpec:
    body = grpc_kserve.metadata_request(spec.model)
    answer = _ask(rpc, grpc_kserve.METADATA_PATH, body, headers)
    if answer is None:
        return spec
    try:
        return grpc_kserve.declared(spec, answer)
    except ValueError:
        return spec


def _ask(rpc: Rpc, method: str, body: bytes, headers: Sequence[tuple[str, str]]) -> bytes | None:
    """One answer; None when there is none within the time."""
    metadata = [(name.lower(), value) for name, value in headers]
    key = rpc.send(method, body, timeout_s=ASK_TIMEOUT_S, metadata=metadata)
    answer: bytes | None = None
    deadline_s = time.monotonic() + 2 * ASK_TIMEOUT_S
    while time.monotonic() < deadline_s:
        select.select([rpc.fd], [], [], POLL_S)
        for event in rpc.take():
            if event.key == key and event.kind == "message":
                answer = event.payload
            elif event.key == key and isinstance(event.payload, CallEnd):
                return answer
    return None
