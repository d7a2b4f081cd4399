"""Receives spans over OTLP/gRPC and writes them as the OpenTelemetry collector's file exporter does: a line of JSON per
export. Run by the python of .real/vllm, which has the protobufs.

    python otlp_sink.py PORT FILE

Prints "ready".
"""

import base64
import json
import os
import signal
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TextIO

import grpc
from google.protobuf.json_format import MessageToDict
from opentelemetry.proto.collector.trace.v1 import trace_service_pb2, trace_service_pb2_grpc

IDS = ("traceId", "spanId", "parentSpanId")


class Sink(trace_service_pb2_grpc.TraceServiceServicer):
    def __init__(self, file: TextIO) -> None:
        self._file = file

    def Export(self, request: trace_service_pb2.ExportTraceServiceRequest, context: grpc.ServicerContext):
        told = MessageToDict(request, use_integers_for_enums=True)
        for resource in told.get("resourceSpans", []):
            for scope in resource.get("scopeSpans", []):
                for span in scope.get("spans", []):
                    # protobuf's JSON has ids in base64, OTLP's has them in hex
                    span.update({key: base64.b64decode(span[key]).hex() for key in IDS if key in span})
        self._file.write(json.dumps(told) + "\n")
        self._file.flush()
        return trace_service_pb2.ExportTraceServiceResponse()


def main() -> None:
    port, path = int(sys.argv[1]), Path(sys.argv[2])
    signal.signal(signal.SIGTERM, lambda *_: os._exit(0))
    with path.open("w") as file:
        server = grpc.server(ThreadPoolExecutor(1))
        trace_service_pb2_grpc.add_TraceServiceServicer_to_server(Sink(file), server)
        server.add_insecure_port(f"127.0.0.1:{port}")
        server.start()
        print("ready", flush=True)
        server.wait_for_termination()


if __name__ == "__main__":
    main()
