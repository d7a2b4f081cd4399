"""A server that does nothing but send tokens on time, each carrying the instant it was written.

    python bench/null_server.py --tokens 200 --gap-ms 10 --first-ms 50

One thread, one epoll, no model. Prints its port on the first line. Every token is a chunk of its own, so what a client
adds to the time between two tokens is the client's.
"""

import argparse
import heapq
import select
import socket
import time

HEAD = b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nTransfer-Encoding: chunked\r\n\r\n"
EVENT = 'data: {"choices":[{"index":0,"delta":{"content":"%d"},"finish_reason":null}]}\n\n'
LAST = b'data: {"choices":[{"index":0,"delta":{},"finish_reason":"length"}]}\n\n'
DONE = b"data: [DONE]\n\n"


def chunk(data: bytes) -> bytes:
    return b"%x\r\n%s\r\n" % (len(data), data)


class Stream:
    def __init__(self, connection: socket.socket, due_ns: int) -> None:
        self.connection = connection
        self.due_ns = due_ns
        self.sent = 0

    def __lt__(self, other: "Stream") -> bool:
        return self.due_ns < other.due_ns


def serve(tokens: int, gap_ns: int, first_ns: int) -> None:
    listener = socket.create_server(("127.0.0.1", 0), backlog=2048)
    listener.setblocking(False)
    print(listener.getsockname()[1], flush=True)
    epoll = select.epoll()
    epoll.register(listener.fileno(), select.EPOLLIN)
    connections: dict[int, socket.socket] = {}
    buffers: dict[int, bytes] = {}
    due: list[Stream] = []
    while True:
        now_ns = time.monotonic_ns()
        while due and due[0].due_ns <= now_ns:
            stream = heapq.heappop(due)
            data = chunk((EVENT % time.monotonic_ns()).encode())
            if stream.sent == 0:
                data = HEAD + data
            stream.sent += 1
            if stream.sent == tokens:
                data += chunk(LAST) + chunk(DONE) + b"0\r\n\r\n"
            else:
                stream.due_ns += gap_ns
                heapq.heappush(due, stream)
            try:
                stream.connection.send(data)
            except OSError:
                continue
            now_ns = time.monotonic_ns()
        timeout_s = max(0.0, (due[0].due_ns - now_ns) / 1e9) if due else 1.0
        for fd, _ in epoll.poll(min(timeout_s, 1.0)):
            if fd == listener.fileno():
                connection, _ = listener.accept()
                connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
                connection.setblocking(False)
                connections[connection.fileno()] = connection
                buffers[connection.fileno()] = b""
                epoll.register(connection.fileno(), select.EPOLLIN)
                continue
            connection = connections[fd]
            try:
                data = connection.recv(65536)
            except OSError:
                data = b""
            if not data:
                epoll.unregister(fd)
                del connections[fd], buffers[fd]
                connection.close()
                continue
            buffers[fd] += data
            head, found, body = buffers[fd].partition(b"\r\n\r\n")
            if found and len(body) >= int(head.lower().split(b"content-length: ")[1].split(b"\r\n")[0]):
                buffers[fd] = b""
                heapq.heappush(due, Stream(connection, time.monotonic_ns() + first_ns))


if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    parser.add_argument("--tokens", type=int, default=200)
    parser.add_argument("--gap-ms", type=float, default=10.0)
    parser.add_argument("--first-ms", type=float, default=50.0)
    arguments = parser.parse_args()
    serve(arguments.tokens, round(arguments.gap_ms * 1e6), round(arguments.first_ms * 1e6))
