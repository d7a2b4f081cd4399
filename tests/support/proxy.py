"""A loopback HTTP proxy: whole URLs are forwarded as they are, CONNECT opens a tunnel."""

import contextlib
import select
import socket
import threading
from urllib.parse import urlsplit

PATIENCE_S = 10.0


class Proxy:
    """Context manager; `url` while it runs. `heads`: what clients said to it. refuse: status line for every CONNECT."""

    def __init__(self, *, refuse: str | None = None) -> None:
        self._refuse = refuse
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.url = f"http://127.0.0.1:{self._listener.getsockname()[1]}"
        self.heads: list[bytes] = []
        self.connections = 0

    def __enter__(self) -> "Proxy":
        threading.Thread(target=self._accept, daemon=True).start()
        return self

    def __exit__(self, *_: object) -> None:
        with contextlib.suppress(OSError):
            self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()

    def _accept(self) -> None:
        with contextlib.suppress(OSError):
            while True:
                client, _ = self._listener.accept()
                self.connections += 1
                threading.Thread(target=self._serve, args=(client,), daemon=True).start()

    def _serve(self, client: socket.socket) -> None:
        with client, contextlib.suppress(OSError):
            said = b""
            while b"\r\n\r\n" not in said:
                data = client.recv(65536)
                if not data:
                    return
                said += data
            head, _, rest = said.partition(b"\r\n\r\n")
            self.heads.append(head)
            method, place, _ = head.split(b"\r\n", 1)[0].decode().split(" ")
            if method != "CONNECT":
                parts = urlsplit(place)
                with socket.create_connection((parts.hostname, parts.port or 80)) as service:
                    service.sendall(said)
                    _pump(client, service)
                return
            if self._refuse is not None:
                client.sendall(f"HTTP/1.1 {self._refuse}\r\n\r\n".encode())
                return
            host, _, port = place.rpartition(":")
            with socket.create_connection((host.strip("[]"), int(port))) as service:
                client.sendall(b"HTTP/1.1 200 Connection established\r\n\r\n")
                service.sendall(rest)
                _pump(client, service)


def _pump(one: socket.socket, other: socket.socket) -> None:
    """Carries bytes both ways until one side closes."""
    while True:
        for ready in select.select([one, other], [], [], PATIENCE_S)[0]:
            data = ready.recv(65536)
            if not data:
                return
            (other if ready is one else one).sendall(data)
