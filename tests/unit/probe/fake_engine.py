"""A fake inference server: pages by path, and a generation API that a test shapes."""

import json
from collections.abc import Callable
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

Body = dict[str, Any] | list[Any] | str | bytes
Pages = dict[str, Body | tuple[int, Body]]
Generate = Callable[[str, dict[str, Any]], "Answer | None"]

CHAT = "/v1/chat/completions"
COMPLETIONS = "/v1/completions"
TEMPLATE_TOKENS = 30
TOKENS_PER_WORD = 1.25


class Answer:
    def __init__(self, body: Body, status: int = 200, content_type: str = "application/json") -> None:
        self.status = status
        self.content_type = content_type
        self.body = (
            body if isinstance(body, bytes) else body.encode() if isinstance(body, str) else json.dumps(body).encode()
        )


def prompt_tokens(payload: dict[str, Any]) -> int:
    messages = payload.get("messages")
    text = messages[0]["content"] if messages else payload["prompt"]
    return round((TEMPLATE_TOKENS if messages else 1) + TOKENS_PER_WORD * len(text.split()))


def openai_stream(payload: dict[str, Any], end: str = "data: [DONE]\n\n") -> Answer:
    """One token, usage when asked for."""
    usage = {"prompt_tokens": prompt_tokens(payload), "completion_tokens": 1}
    chunks: list[dict[str, Any]] = [{"choices": [{"index": 0, "delta": {"content": "a"}, "finish_reason": "length"}]}]
    if payload.get("stream_options", {}).get("include_usage"):
        chunks.append({"choices": [], "usage": usage})
    text = "".join(f"data: {json.dumps(chunk)}\n\n" for chunk in chunks)
    return Answer(text + end, content_type="text/event-stream; charset=utf-8")


def openai_whole(payload: dict[str, Any]) -> Answer:
    return Answer({"choices": [{"message": {"content": "a"}}], "usage": {"prompt_tokens": prompt_tokens(payload)}})


def openai(path: str, payload: dict[str, Any]) -> Answer | None:
    """The usual API: chat and completions, streamed or whole."""
    if path not in (CHAT, COMPLETIONS):
        return None
    return openai_stream(payload) if payload["stream"] else openai_whole(payload)


class QuietServer(ThreadingHTTPServer):
    """Clients under test hang up in the middle; that is no news."""

    def handle_error(self, request: object, client_address: object) -> None:
        pass


class FakeEngine:
    """`pages` answer GET; `generate` answers POST, None meaning 404; `headers` go on every answer."""

    def __init__(self) -> None:
        self.pages: Pages = {}
        self.generate: Generate = openai
        self.headers: dict[str, str] = {}
        self.required_key: str | None = None
        self.posts: list[tuple[str, dict[str, Any]]] = []
        self.gets: list[str] = []
        fake = self

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                fake.gets.append(self.path)
                page = fake.pages.get(self.path, (404, {"detail": "Not Found"}))
                status, body = page if isinstance(page, tuple) else (200, page)
                kind = "text/plain" if isinstance(body, str | bytes) else "application/json"
                self._send(Answer(body, status, kind))

            def do_POST(self) -> None:
                payload = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
                fake.posts.append((self.path, payload))
                self._send(fake.generate(self.path, payload) or Answer({"detail": "Not Found"}, 404))

            def _send(self, answer: Answer) -> None:
                if fake.required_key and self.headers.get("Authorization") != f"Bearer {fake.required_key}":
                    answer = Answer({"error": f"bad key {self.headers.get('Authorization')}"}, 401)
                self.send_response_only(answer.status)
                for name, value in {"Content-Type": answer.content_type, **fake.headers}.items():
                    self.send_header(name, value)
                self.send_header("Content-Length", str(len(answer.body)))
                self.end_headers()
                self.wfile.write(answer.body)

            def log_message(self, format: str, *args: object) -> None:
                pass

        self.server = QuietServer(("127.0.0.1", 0), Handler)
        self.server.daemon_threads = True
        self.port = self.server.server_address[1]
        self.url = f"http://127.0.0.1:{self.port}"


def model_list(*ids: str, owned_by: str = "someone", **card: Any) -> dict[str, Any]:
    return {"object": "list", "data": [{"id": i, "object": "model", "owned_by": owned_by, **card} for i in ids]}
