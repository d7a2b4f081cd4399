"""The verb that shows what can be seen of a service, what is missing, and how to get it."""

import os
import signal
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from cyclopts import App, Parameter

from pinchpoint.cli_output import Json, complain, print_json
from pinchpoint.errors import EXIT_OK, EXIT_UNREACHABLE, TargetError, UsageError

if TYPE_CHECKING:
    from pinchpoint.seen import Survey
    from pinchpoint.telemetry.discovery import Discovery

DEFAULT_DURATION = "5s"
DEFAULT_PERIOD = "1s"
REDRAW_S = 0.5

telemetry_app = App(name="telemetry", help="Show what can be seen of a service, what is missing, and how to get it.")


@telemetry_app.default
def telemetry(
    *what: Annotated[
        str, Parameter(help="URLs of the service, of other pages of metrics; or saved pages and outputs of nvidia-smi.")
    ],
    watch: Annotated[bool, Parameter(negative="", help="Go on until Ctrl-C.")] = False,
    duration: Annotated[str, Parameter(help="How long to look.")] = DEFAULT_DURATION,
    period: Annotated[str, Parameter(help="From one reading to the next.")] = DEFAULT_PERIOD,
    elsewhere: Annotated[
        bool, Parameter(negative="--only-here", help="Look on the usual ports of the same host, too.")
    ] = True,
    api_key_env: Annotated[str | None, Parameter(help="Environment variable that holds the API key.")] = None,
    ca_file: Annotated[Path | None, Parameter(help="Certificates of a private authority, PEM.")] = None,
    as_json: Json = False,
) -> int:
    """Show every series that can be read of a service, by layer, with its value; then what is missing.

    Pages are looked for at the URL and on the ports where exporters usually are, on the same host. When the service
    runs on this host, its processes and accelerators are read, too.
    """
    from pinchpoint.units import parse_duration_s

    if not what:
        raise UsageError("say what to look at: the URL of a service, such as http://127.0.0.1:8000, or a saved page")
    duration_s, period_s = parse_duration_s(duration), parse_duration_s(period)
    if not duration_s:
        raise UsageError("--duration is 0; rates need two readings, so look for at least twice the period")
    from pinchpoint.telemetry.collect import MIN_PERIOD_S

    if period_s < MIN_PERIOD_S:
        raise UsageError(f"--period {period} is below {MIN_PERIOD_S} s; choose a longer one")
    urls = [each for each in what if each.startswith(("http://", "https://"))]
    files = [Path(each) for each in what if each not in urls]
    for each in files:
        if not each.exists():
            raise UsageError(f"there is no file {each}; a URL begins with http:// or https://")
    if urls and files:
        raise UsageError("files and URLs are not looked at together; give the one or the other")
    if files:
        from pinchpoint.catalog import load_catalog
        from pinchpoint.telemetry.survey import survey_files

        _show(survey_files(load_catalog(), files), as_json)
        return EXIT_OK
    return _look(urls, None if watch else duration_s, period_s, elsewhere, api_key_env, ca_file, as_json)


def _look(
    urls: list[str],
    duration_s: float | None,
    period_s: float,
    elsewhere: bool,
    api_key_env: str | None,
    ca_file: Path | None,
    as_json: bool,
) -> int:
    from rich.console import Console
    from rich.live import Live

    from pinchpoint.catalog import load_catalog
    from pinchpoint.fetch import tls_context
    from pinchpoint.probe.address import parse_address
    from pinchpoint.probe.local import is_this_machine, listening_pids
    from pinchpoint.probe.signatures import load_signatures
    from pinchpoint.report.telemetry_text import live_screen
    from pinchpoint.telemetry.discovery import discover, named
    from pinchpoint.telemetry.survey import Machine, Watch, local_sources, make_survey

    api_key = os.environ.get(api_key_env, "").strip() if api_key_env is not None else None
    if api_key == "":
        raise UsageError(f"the variable {api_key_env} is empty; put the key there, or leave out --api-key-env")
    catalog, tls = load_catalog(), tls_context(str(ca_file) if ca_file is not None else None)
    notes: list[str] = []
    pids: set[int] = set()
    null_urls: list[str] = []
    discoveries: list[Discovery] = []
    anywhere_local = False
    for url in urls:
        address = parse_address(url.partition("?")[0])
        local = is_this_machine(address)
        anywhere_local |= local
        one = discover(
            url,
            catalog,
            api_key=api_key,
            tls=tls,
            host=None if local else address.host,
            elsewhere=elsewhere and not address.prefix,  # who gives a page knows where it is
        )
        discoveries.append(one)
        here = [found for found in one.pages if found.page.url.startswith(address.origin() + "/")]
        engines = {found.exporter for found in here if found.layer == "engine"}
        if engines or not (here or address.prefix):
            own, note = listening_pids(address)
            pids |= set(own)
            notes += [note] if note is not None else []
        serves = not here or any(found.layer in ("engine", "gateway") for found in here)  # an exporter has no /health
        if serves and not address.prefix:
            signatures = load_signatures()
            engine = next((signatures.named(name) for name in engines if name is not None), None)
            paths = engine.health_paths if engine is not None and engine.health_paths else signatures.health_paths[:2]
            null_urls += [address.url + path for path in paths]
    troubles = [(one, one.trouble) for one in discoveries]
    for one, trouble in troubles:
        if trouble is not None:
            if not one.pages:
                raise TargetError(_sentence(trouble.url, trouble.reason))
            notes.append(_sentence(trouble.url, trouble.reason))
    found = named({each.page.url: each for one in discoveries for each in one.pages}.values())
    machine = Machine(anywhere_local, tuple(sorted(pids)), tuple(null_urls))
    if not anywhere_local:
        notes.append("readings of the source host are of this machine, which is the client's and not the service's")
    sources = [
        *((each.page, period_s) for each in found),
        *local_sources(machine, period_s, api_key, tls, notes.append),
    ]

    def survey() -> "Survey":
        return make_survey(catalog, watching, found, discoveries, anywhere_local, notes)

    console = Console(file=sys.stderr if as_json else sys.stdout, highlight=False)
    live_shown = console.is_terminal and not console.is_dumb_terminal
    until_s = None if duration_s is None else time.monotonic() + duration_s
    for number in (signal.SIGTERM, signal.SIGINT):  # the latter is ignored in what a script starts in the background
        signal.signal(number, signal.default_int_handler)
    with Watch(catalog, sources) as watching:
        try:
            if live_shown:
                with Live(console=console, auto_refresh=False, transient=True, vertical_overflow="ellipsis") as live:
                    while until_s is None or time.monotonic() < until_s:
                        live.update(live_screen(survey(), console.height), refresh=True)
                        time.sleep(REDRAW_S)
            else:
                while until_s is None or time.monotonic() < until_s:
                    time.sleep(REDRAW_S if until_s is None else max(0.0, until_s - time.monotonic()))
        except KeyboardInterrupt:
            pass  # what was seen so far is shown
        seen = survey()
    _show(seen, as_json)
    for _, trouble in troubles:
        if trouble is not None:
            complain(_sentence(trouble.url, trouble.reason))
            return EXIT_UNREACHABLE
    return EXIT_OK


def _show(survey: "Survey", as_json: bool) -> None:
    if as_json:
        print_json(survey_json(survey))
        return
    from rich.console import Console

    from pinchpoint.report.telemetry_text import survey_screen

    Console(highlight=False).print(survey_screen(survey))


def survey_json(survey: "Survey") -> dict[str, Any]:
    import msgspec

    document = msgspec.to_builtins(survey)
    for page, seen in zip(document["pages"], survey.pages, strict=True):
        for told, coverage in zip(
            (page["coverage"] or {}).get("exporters", ()), seen.coverage.exporters if seen.coverage else (), strict=True
        ):
            told["share"], told["share_expected"] = coverage.share, coverage.share_expected
    return {"schema": "pinchpoint.telemetry/1", **document}


def _sentence(url: str, reason: str) -> str:
    """What stood in the way of a page, and what to do."""
    wants_key = f"{url} asks for a key (HTTP {reason.removeprefix('http_')}); name its variable with --api-key-env"
    sentences = {
        "refused": f"nothing listens at {url} (connection refused); start the service or check the port",
        "timeout": f"{url} did not answer in time; check that the service is up and no firewall drops it",
        "dns": f"the host name in {url} has no address; check its spelling",
        "certificate": f"the TLS certificate of {url} is not trusted; give a private authority's with --ca-file FILE",
        "wrong_name": f"the TLS certificate of {url} is for another name; give the URL with a name that it holds",
        "tls": f"TLS with {url} failed; if it speaks plain HTTP, use http://",
        "not_http": f"{url} answers, but not in HTTP; check the port",
        "reset": f"{url} closed the connection without an answer; check the port, and http:// against https://",
        "too_large": f"the page {url} is too large to be read every second; give a smaller one",
        "truncated": f"the page {url} is cut off; look for a proxy that ends connections early",
        "html": f"{url} is a page for people (HTML), no page of metrics; give the service's own URL or its page's",
        "json": f"{url} is JSON, no page of metrics; TensorRT-LLM has its page at /prometheus/metrics",
        "binary": f"{url} is binary, no page of metrics; check the URL",
        "no_samples": f"{url} holds no samples; check the URL",
        "redirected": f"{url} leads to another server; give that one's URL",
        "http_401": wants_key,
        "http_403": wants_key,
        "http_404": f"{url} is not there (HTTP 404): this server shows no page of metrics; turn it on (SGLang: "
        "--enable-metrics, llama.cpp: --metrics), or give the page's own URL",
    }
    return sentences.get(reason, f"{url} gave no page of metrics ({reason.replace('http_', 'HTTP ')}); check the URL")
