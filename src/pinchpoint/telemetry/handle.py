"""The caller's end of the collector process: start it, ask whether it lives, stop it.

The surprising thing: the pipe to its standard input is the leash. It stays open as long as the caller lives, and
when the caller dies, however it dies, the kernel closes it and the collector ends.
"""

import contextlib
import os
import signal
import subprocess
import sys
import tempfile
from typing import IO

import msgspec

from pinchpoint.errors import UnsupportedMeasurementError
from pinchpoint.telemetry.config import CollectorConfig

KEY_ENV = "PINCHPOINT_COLLECTOR_API_KEY"
"""Where the collector finds the key when the caller has it in hand and not in a variable."""
MAX_COMPLAINT_BYTES = 4_096
STOP_TIMEOUT_S = 5.0


class CollectorHandle:
    """A running collector. Made by `start_collector`."""

    def __init__(self, process: "subprocess.Popen[bytes]", errors: IO[bytes]) -> None:
        self._process = process
        self._errors = errors

    @property
    def pid(self) -> int:
        return self._process.pid

    def alive(self) -> bool:
        return self._process.poll() is None

    def complaint(self) -> str | None:
        """What the collector said went wrong, one sentence a line; None if nothing did."""
        if self._errors.closed:
            return None
        self._errors.seek(0)
        return self._errors.read(MAX_COMPLAINT_BYTES).decode("utf-8", "replace").strip() or None

    def stop(self, timeout_s: float = STOP_TIMEOUT_S) -> int:
        """Ends the collector and returns its exit code: 0 fine, else see `complaint`; negative: it had to be killed.

        Its files are complete when this returns. Calling it again returns the same code.
        """
        if self._process.stdin is not None and not self._process.stdin.closed:
            with contextlib.suppress(BrokenPipeError):
                self._process.stdin.close()
        try:
            return self._process.wait(timeout_s)
        except subprocess.TimeoutExpired:
            self._process.kill()
            return self._process.wait()


def start_collector(config: CollectorConfig, api_key: str | None = None) -> CollectorHandle:
    """Starts the collector process. The key goes through its environment, never through arguments or files.

    Raises UnsupportedMeasurementError when it ends before it took its configuration.
    """
    environment = dict(os.environ)
    if api_key is not None:
        name = config.headers_env or KEY_ENV
        environment[name] = api_key
        config = msgspec.structs.replace(config, headers_env=name)
    config = msgspec.structs.replace(config, parent_pid=os.getpid())
    errors = tempfile.TemporaryFile()  # noqa: SIM115  (lives as long as the handle; a pipe could fill and block)
    # A process group of its own: Ctrl-C reaches the caller, who then stops the collector in order. Not a session of its
    # own: Linux schedules each session as one group (autogroup), and on a machine filled by vLLM a collector alone in
    # its session was measured to be late by up to 2.2 s, against 6 ms inside its parent's session.
    process = subprocess.Popen(
        [sys.executable, "-m", "pinchpoint.telemetry"],
        stdin=subprocess.PIPE,
        stdout=subprocess.DEVNULL,
        stderr=errors,
        env=environment,
        process_group=0,
    )
    handle = CollectorHandle(process, errors)
    assert process.stdin is not None
    try:
        process.stdin.write(msgspec.json.encode(config) + b"\n")
        process.stdin.flush()
    except BrokenPipeError:
        code = process.wait()
        sentence = handle.complaint() or signal.strsignal(-code) if code < 0 else handle.complaint()
        raise UnsupportedMeasurementError(
            f"the telemetry collector ended at once ({sentence or f'exit code {code}'}); run with --no-telemetry or "
            "mend the cause"
        ) from None
    return handle
