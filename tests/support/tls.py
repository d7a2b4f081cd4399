"""A private authority made with openssl, and scripted servers that speak TLS with its certificates."""

import contextlib
import socket
import ssl
import subprocess
from pathlib import Path

from tests.support.scripted_server import Script, ScriptedServer

DAYS = "2"


class Authority:
    """Files of one authority in `directory`: `ca_file`, and a server certificate for 127.0.0.1 (or `names`)."""

    def __init__(self, directory: Path, names: str = "IP:127.0.0.1,DNS:localhost") -> None:
        directory.mkdir(parents=True, exist_ok=True)
        self.ca_file = directory / "ca.pem"
        ca_key, self._key, self._certificate = (directory / name for name in ("ca.key", "server.key", "server.pem"))
        request, extensions = directory / "server.csr", directory / "server.ext"
        extensions.write_text(f"subjectAltName={names}\nbasicConstraints=CA:FALSE\nkeyUsage=digitalSignature\n")
        new_key = ["-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes"]
        is_ca = ["-addext", "keyUsage=critical,keyCertSign,cRLSign"]
        _openssl("req", "-x509", *new_key, "-keyout", ca_key, "-out", self.ca_file, "-subj", "/CN=test authority",
                 "-days", DAYS, *is_ca)  # fmt: skip
        _openssl("req", *new_key, "-keyout", self._key, "-out", request, "-subj", "/CN=test server")
        _openssl("x509", "-req", "-in", request, "-CA", self.ca_file, "-CAkey", ca_key, "-CAcreateserial",
                 "-out", self._certificate, "-days", DAYS, "-extfile", extensions)  # fmt: skip

    @property
    def key_file(self) -> Path:
        return self._key

    @property
    def certificate_file(self) -> Path:
        return self._certificate

    def server_context(self) -> ssl.SSLContext:
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(self._certificate, self._key)
        return context


class TlsScriptedServer(ScriptedServer):
    """Each piece of bytes is one write, so one TLS record when it has at most 16 KiB."""

    def __init__(self, script: Script, authority: Authority) -> None:
        super().__init__(script)
        self.url = f"https://127.0.0.1:{self.port}"
        self.handshake_errors: list[str] = []
        self._context = authority.server_context()

    def _serve(self, connection: socket.socket) -> None:
        try:
            wrapped = self._context.wrap_socket(connection, server_side=True)
        except OSError as error:
            self.handshake_errors.append(str(error))
            connection.close()
            return
        with self._lock:
            self._open.append(wrapped)
        with contextlib.suppress(ssl.SSLError):
            super()._serve(wrapped)


def _openssl(*arguments: str | Path) -> None:
    subprocess.run(["openssl", *map(str, arguments)], check=True, capture_output=True, timeout=30)
