"""The verb that serves this host's readings to a collector on another machine."""

import signal
import sys
from pathlib import Path
from typing import Annotated

from cyclopts import App, Parameter

from pinchpoint.cli_output import Json, complain, print_json
from pinchpoint.errors import EXIT_OK, UsageError

DEFAULT_LISTEN = "127.0.0.1:9500"

agent_app = App(name="agent", help="Serve this host's readings, for a run that is started on another machine.")


@agent_app.default
def agent(
    *,
    listen: Annotated[
        str, Parameter(help="ADDRESS:PORT. Beyond loopback a token is needed; port 0 takes a free one.")
    ] = DEFAULT_LISTEN,
    token_env: Annotated[
        str | None, Parameter(help="Name of the environment variable that holds the token askers must bring.")
    ] = None,
    pid: Annotated[
        tuple[int, ...],
        Parameter(negative="", help="A process of the service to watch, descendants too. Repeatable."),
    ] = (),
    port: Annotated[
        int | None, Parameter(help="Watch the processes that listen on this port; looked for again after a restart.")
    ] = None,
    name: Annotated[str | None, Parameter(help="How this host is called in the readings; default: its name.")] = None,
    cert: Annotated[Path | None, Parameter(help="Certificate (PEM, with its chain), to serve over TLS.")] = None,
    key: Annotated[Path | None, Parameter(help="Key of the certificate (PEM).")] = None,
    as_json: Json = False,
) -> int:
    """Serve readings of this host, and of a service's processes, until Ctrl-C. They are taken when asked for."""
    import os
    import socket

    from pinchpoint.telemetry.agent import Agent, AgentPage, listening_pids, server_tls
    from pinchpoint.telemetry.nvml import find_nvml

    address, separator, number = listen.rpartition(":")
    if not separator or not number.isdigit() or int(number) > 65535:
        raise UsageError(f"--listen {listen}: give ADDRESS:PORT, such as {DEFAULT_LISTEN}")
    if pid and port is not None:
        raise UsageError("--pid and --port both say which processes to watch; give one of them")
    if (cert is None) != (key is None):
        raise UsageError("--cert and --key belong together; give both")
    token = None
    if token_env is not None:
        token = os.environ.get(token_env, "").strip()
        if not token:
            raise UsageError(f"the variable {token_env} is empty; put the token there")
    find = (lambda: pid) if pid else (lambda: listening_pids(port)) if port is not None else None
    tls = server_tls(str(cert), str(key)) if cert is not None and key is not None else None
    page = AgentPage(name or socket.gethostname(), find, find_nvml(complain))
    with Agent(address.strip("[]"), int(number), page, token, tls) as server:
        if as_json:
            print_json({"schema": "pinchpoint.agent/1", "url": server.url})
        else:
            sys.stdout.write(f"readings of this host at {server.url} (Ctrl-C ends it)\n")
        sys.stdout.flush()
        if token is not None and tls is None and not address.startswith(("127.", "localhost", "[::1]", "::1")):
            complain("the token travels in clear; serve over TLS with --cert and --key, or through a tunnel")
        signal.signal(signal.SIGTERM, _end)
        signal.signal(signal.SIGINT, _end)
        try:
            server.serve_forever()
        except KeyboardInterrupt:
            return EXIT_OK
    return EXIT_OK


def _end(number: int, frame: object) -> None:
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    raise KeyboardInterrupt
