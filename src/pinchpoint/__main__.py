"""The command `pinchpoint`, also as `python -m pinchpoint`."""

import sys


def main() -> None:
    """Ctrl-C while the program is still being loaded ends it without a traceback."""
    try:
        from pinchpoint.cli import main as run
    except KeyboardInterrupt:
        sys.stderr.write("pinchpoint: interrupted before anything was done\n")
        sys.exit(130)  # 128 + SIGINT; errors.EXIT_INTERRUPTED may not be loaded yet
    run()


if __name__ == "__main__":
    main()
