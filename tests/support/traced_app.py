"""A service of three parts that export spans with OpenTelemetry's SDK: gateway, store, engine. Started as a process.

    python -m tests.support.traced_app OTLP_URL SKEW_S      prints its URL, serves until stdin closes

The gateway (FastAPI) takes chat requests, looks something up in a store, and asks the engine. The engine stands in the
same process, but has a resource of its own and a clock that is SKEW_S ahead. How long each part takes is known.
"""

import asyncio
import json
import socket
import sys
import threading
import time
from collections.abc import AsyncIterator
from typing import Any

import uvicorn
from fastapi import FastAPI, Request
from fastapi.responses import StreamingResponse
from opentelemetry.exporter.otlp.proto.http import Compression
from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
from opentelemetry.sdk.resources import Resource
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import BatchSpanProcessor
from opentelemetry.trace import SpanKind, Tracer, set_span_in_context
from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

STORE_S, QUEUE_S, PREFILL_S, DECODE_S = 0.05, 0.03, 0.04, 0.06
WORDS = ("one", "two", "three", "four")
NS_PER_S = 1_000_000_000


def tracer(service: str, otlp_url: str) -> tuple[Tracer, TracerProvider]:
    provider = TracerProvider(resource=Resource.create({"service.name": service, "host.name": f"host-of-{service}"}))
    exporter = OTLPSpanExporter(f"{otlp_url}/v1/traces", compression=Compression.Gzip)
    provider.add_span_processor(BatchSpanProcessor(exporter, schedule_delay_millis=500))
    return provider.get_tracer("traced_app"), provider


def make_app(otlp_url: str, skew_s: float) -> tuple[FastAPI, list[TracerProvider]]:
    gateway, gateway_provider = tracer("gateway", otlp_url)
    engine, engine_provider = tracer("engine", otlp_url)
    app = FastAPI()
    propagator = TraceContextTextMapPropagator()

    @app.get("/v1/models")
    def models() -> dict[str, Any]:
        return {"object": "list", "data": [{"id": "m", "object": "model"}]}

    @app.post("/v1/chat/completions")
    async def chat(request: Request) -> StreamingResponse:
        await request.body()
        caller = propagator.extract(dict(request.headers))
        span = gateway.start_span("POST /v1/chat/completions", caller, SpanKind.SERVER)
        inside = set_span_in_context(span)
        lookup = gateway.start_span("retrieve", inside, SpanKind.CLIENT, {"db.system.name": "faiss"})
        await asyncio.sleep(STORE_S)
        lookup.end()
        call = gateway.start_span("POST engine", inside, SpanKind.CLIENT)

        async def answer() -> AsyncIterator[bytes]:
            begun_ns = time.time_ns()
            await asyncio.sleep(QUEUE_S + PREFILL_S)
            first_s = (time.time_ns() - begun_ns) / NS_PER_S
            for word in WORDS:
                choice = {"index": 0, "delta": {"content": word}, "finish_reason": None}
                yield f"data: {json.dumps({'id': 'c', 'model': 'm', 'choices': [choice]})}\n\n".encode()
                await asyncio.sleep(DECODE_S / len(WORDS))
            ended_ns = time.time_ns()
            told = engine.start_span(
                "llm_request",
                set_span_in_context(call),
                SpanKind.SERVER,
                {
                    "gen_ai.latency.time_in_queue": QUEUE_S,
                    "gen_ai.latency.time_in_model_prefill": first_s - QUEUE_S,
                    "gen_ai.latency.time_in_model_decode": (ended_ns - begun_ns) / NS_PER_S - first_s,
                    "gen_ai.latency.time_to_first_token": first_s,
                },
                start_time=begun_ns + int(skew_s * NS_PER_S),
            )
            told.end(ended_ns + int(skew_s * NS_PER_S))
            call.end()
            choice = {"index": 0, "delta": {}, "finish_reason": "stop"}
            usage = {"prompt_tokens": 5, "completion_tokens": len(WORDS), "total_tokens": 5 + len(WORDS)}
            yield f"data: {json.dumps({'id': 'c', 'model': 'm', 'choices': [choice], 'usage': usage})}\n\n".encode()
            span.end()
            yield b"data: [DONE]\n\n"

        return StreamingResponse(answer(), media_type="text/event-stream")

    return app, [gateway_provider, engine_provider]


def main() -> None:
    app, providers = make_app(sys.argv[1], float(sys.argv[2]))
    with socket.create_server(("127.0.0.1", 0)) as listener:
        server = uvicorn.Server(uvicorn.Config(app, log_level="warning"))

        def watch() -> None:
            sys.stdin.read()
            server.should_exit = True

        threading.Thread(target=watch, daemon=True).start()
        print(json.dumps({"url": f"http://127.0.0.1:{listener.getsockname()[1]}"}), flush=True)
        server.run(sockets=[listener])
    for provider in providers:
        provider.shutdown()


if __name__ == "__main__":
    main()
