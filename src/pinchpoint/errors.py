"""Exceptions a caller would handle differently, each tied to the exit code the command line gives it.

Every message says what was found, where, and what to do next. Exit code 0 is fine, 1 means an SLO failed.
"""

EXIT_OK = 0
EXIT_SLO_FAILED = 1
EXIT_USAGE = 2
EXIT_UNSUPPORTED = 3
"""The measurement cannot support a verdict."""
EXIT_UNREACHABLE = 4
EXIT_GUARD = 5
EXIT_INTERRUPTED = 130
"""128 + SIGINT, as shells report it; used only when Ctrl-C comes before anything was measured."""


class PinchpointError(Exception):
    """Any error that is told to the user in one sentence instead of a traceback."""

    exit_code = EXIT_USAGE


class UsageError(PinchpointError):
    """A flag, plan file, SLO or path that cannot be used as given."""


class RunFormatError(PinchpointError):
    """A run directory that is missing, damaged or of a format this version does not read."""


class UnsupportedMeasurementError(PinchpointError):
    """What was measured cannot support a verdict (nothing completed, generator invalid)."""

    exit_code = EXIT_UNSUPPORTED


class TargetError(PinchpointError):
    """The service cannot be reached, or does not answer as an LLM service."""

    exit_code = EXIT_UNREACHABLE


class GuardError(PinchpointError):
    """A guard stopped the run to protect the service."""

    exit_code = EXIT_GUARD
