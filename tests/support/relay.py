"""A loopback relay in front of a service that keeps what was asked and what was answered, pair by pair."""

import http.client
import json
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import urlsplit


class Relay:
    """Context manager; `url` while it runs. `pairs`: (path, body asked, body answered) in the order of their ends."""

    def __init__(self, service_url: str) -> None:
        self.pairs: list[tuple[str, bytes, bytes]] = []
        parts = urlsplit(service_url)
        relay = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def _relay(self) -> None:
                asked = self.rfile.read(int(self.headers.get("Content-Length") or 0))
                service = http.client.HTTPConnection(parts.hostname or "", parts.port or 80, timeout=60)
                headers = {"Content-Type": "application/json"} if asked else {}
                service.request(self.command, self.path, asked or None, headers)
                answer = service.getresponse()
                self.send_response(answer.status)
                self.send_header("Content-Type", answer.headers.get("Content-Type", ""))
                self.send_header("Transfer-Encoding", "chunked")
                self.end_headers()
                whole = b""
                while piece := answer.read1(65536):
                    whole += piece
                    self.wfile.write(b"%x\r\n%s\r\n" % (len(piece), piece))
                self.wfile.write(b"0\r\n\r\n")
                service.close()
                relay.pairs.append((self.path, asked, whole))

            do_GET = do_POST = _relay

            def log_message(self, format: str, *args: Any) -> None:
                pass

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self._server.daemon_threads = True
        self.url = f"http://127.0.0.1:{self._server.server_address[1]}"

    def __enter__(self) -> "Relay":
        threading.Thread(target=self._server.serve_forever, daemon=True).start()
        return self

    def __exit__(self, *_: object) -> None:
        self._server.shutdown()
        self._server.server_close()

    def chats(self) -> list[tuple[dict[str, Any], str]]:
        """(body, text of the answer) of each chat completion, put together without any parser of ours."""
        found = []
        for path, asked, answered in self.pairs:
            if not path.endswith("/chat/completions"):
                continue
            lines = [line[6:] for line in answered.decode().splitlines() if line.startswith("data: {")]
            deltas = [choice["delta"] for line in lines for choice in json.loads(line)["choices"]]
            found.append((json.loads(asked), "".join(delta.get("content") or "" for delta in deltas)))
        return found
