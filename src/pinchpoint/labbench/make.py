"""Makes a data set on all cores: interruptible, resumable, and for one seed always the same files.

DIR/README.md       what is what, for people
DIR/manifest.json   what may be known of each run, which part it is in, hashes of everything
DIR/labels.jsonl    what each run really is; never read by what is tested
DIR/runs/ID/        a run directory
DIR/labels.partial.jsonl   labels so far, while it is being made
"""

import hashlib
import os
import shutil
import signal
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from multiprocessing import get_context, parent_process
from pathlib import Path
from typing import Any

import msgspec

from pinchpoint import __version__
from pinchpoint.errors import UsageError
from pinchpoint.labbench.case import Made, make_case
from pinchpoint.labbench.matrix import Case, Size, cases_of
from pinchpoint.labbench.readme import readme
from pinchpoint.labbench.split import HeldOut, held_out
from pinchpoint.rundir import write_atomically

SCHEMA = "pinchpoint.lab-bench/1"
MANIFEST, LABELS, PARTIAL, RUNS, README = "manifest.json", "labels.jsonl", "labels.partial.jsonl", "runs", "README.md"
MAKING = ".making-"
AHEAD_PER_WORKER = 3
"""Cases handed out beyond those under way; few, so that an interrupt waits for little."""

OnMade = Callable[[int, int], None]
"""Called with the number of runs there are and that there will be."""


class Bench(msgspec.Struct, frozen=True):
    """A data set on disk. labels: by id. complete: False when it was interrupted; the same call goes on. bytes: of its
    runs. took_s: of this call."""

    path: Path
    manifest: dict[str, Any]
    labels: dict[str, dict[str, Any]]
    complete: bool
    bytes: int
    took_s: float


def make_bench(
    out: Path, size: Size, seed: int, *, workers: int | None = None, on_made: OnMade = lambda _done, _total: None
) -> Bench:
    """Makes the data set in `out`, or goes on with one that was interrupted.

    Ctrl-C (KeyboardInterrupt) ends it orderly. Raises UsageError for a directory that holds something else.
    """
    begun_s = time.monotonic()
    cases = cases_of(size, seed)
    held = held_out(seed)
    begun = {"schema": SCHEMA, "pinchpoint_version": __version__, "size": _plain(size), "seed": seed}
    labels = _resumed(out, begun, {case.id for case in cases})
    left = [case for case in cases if case.id not in labels]
    on_made(len(labels), len(cases))
    complete = True
    if left:
        complete = _make(out, left, labels, workers or os.cpu_count() or 1, len(cases), on_made)
    manifest = {**begun, "status": "running"}
    if complete:
        manifest = _seal(out, begun, cases, labels, held)
    size_bytes = sum(path.stat().st_size for path in (out / RUNS).glob("*/*") if path.is_file())
    return Bench(out, manifest, labels, complete, size_bytes, time.monotonic() - begun_s)


def _resumed(out: Path, begun: dict[str, Any], known: set[str]) -> dict[str, dict[str, Any]]:
    """Labels of the runs that are there; begins a new data set where there is none."""
    if not out.exists() or not any(out.iterdir()):
        try:
            (out / RUNS).mkdir(parents=True)
        except OSError as error:
            raise UsageError(f"cannot create {out}: {error.strerror}; give a writable directory with --out") from None
        _write_json(out / MANIFEST, {**begun, "status": "running"})
        return {}
    try:
        manifest = msgspec.json.decode((out / MANIFEST).read_bytes(), type=dict[str, Any])
    except (OSError, msgspec.DecodeError):
        raise UsageError(f"{out} holds something that is no data set of the lab; give another --out") from None
    told = {key: manifest.get(key) for key in begun}
    if told != begun:
        size, version = (manifest.get("size") or {}).get("name"), manifest.get("pinchpoint_version")
        raise UsageError(
            f"{out} holds another data set (size {size}, seed {manifest.get('seed')}, of Pinchpoint {version}); "
            "give another --out"
        )
    for scratch in (out / RUNS).glob(f"{MAKING}*"):
        shutil.rmtree(scratch)
    path = out / LABELS if manifest.get("status") == "complete" else out / PARTIAL
    labels: dict[str, dict[str, Any]] = {}
    for line in path.read_bytes().splitlines() if path.exists() else ():
        try:
            label = msgspec.json.decode(line, type=dict[str, Any])
        except msgspec.DecodeError:  # cut off by a kill
            continue
        if label["id"] in known and (out / RUNS / label["id"] / "run.json").exists():
            labels[label["id"]] = label
    return labels


def _make(
    out: Path, cases: list[Case], labels: dict[str, dict[str, Any]], workers: int, total: int, on_made: OnMade
) -> bool:
    """Makes the cases that are left; False when it was interrupted."""
    waiting: Iterator[Case] = iter(cases)
    running: set[Future[Made]] = set()
    with (
        (out / PARTIAL).open("ab") as partial,
        ProcessPoolExecutor(workers, get_context("spawn"), initializer=_begin_worker) as pool,
    ):
        try:
            while True:
                while len(running) < workers + AHEAD_PER_WORKER and (case := next(waiting, None)) is not None:
                    running.add(pool.submit(make_case, case, out / RUNS))
                if not running:
                    return True
                done, running = wait(running, return_when=FIRST_COMPLETED)
                for future in done:
                    made = future.result()
                    labels[made.id] = made.label
                    partial.write(msgspec.json.encode(made.label) + b"\n")
                    partial.flush()
                    on_made(len(labels), total)
        except KeyboardInterrupt:
            for future in running:
                future.cancel()
            return False


def _plain(size: Size) -> dict[str, Any]:
    """As it comes back from JSON."""
    return msgspec.json.decode(msgspec.json.encode(size))


def _begin_worker() -> None:
    """Ctrl-C at a terminal, and what `timeout` sends, goes to a whole group of processes; the workers have one of their
    own, end what they are at and hear from their parent. A parent that was killed says nothing, so they watch it."""
    os.setpgrp()
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    threading.Thread(target=_end_with_parent, daemon=True).start()


def _end_with_parent() -> None:
    parent = parent_process()
    if parent is not None:
        parent.join()
        os._exit(1)


def _seal(
    out: Path, begun: dict[str, Any], cases: list[Case], labels: dict[str, dict[str, Any]], held: HeldOut
) -> dict[str, Any]:
    """Labels in the order of ids, a manifest that says nothing of them but their hash, and what is what."""
    lines = b"".join(msgspec.json.encode(labels[name]) + b"\n" for name in sorted(labels))
    write_atomically(out / LABELS, lines)
    scenarios = [_public(case, out / RUNS / case.id, held) for case in sorted(cases, key=lambda case: case.id)]
    digest = hashlib.sha256()
    for scenario in scenarios:
        for name, value in sorted(scenario["files"].items()):
            digest.update(f"{scenario['id']}/{name} {value}\n".encode())
    labels_sha256 = hashlib.sha256(lines).hexdigest()
    digest.update(labels_sha256.encode())
    manifest = {
        **begun,
        "status": "complete",
        "held_out": msgspec.to_builtins(held),
        "labels": {"file": LABELS, "rows": len(labels), "sha256": labels_sha256},
        "sha256": digest.hexdigest(),
        "scenarios": scenarios,
    }
    write_atomically(out / README, readme(manifest).encode())
    _write_json(out / MANIFEST, manifest)
    (out / PARTIAL).unlink(missing_ok=True)
    return manifest


def _public(case: Case, run: Path, held: HeldOut) -> dict[str, Any]:
    """What may be known of a run: what it is of, how it was watched, and what its files are."""
    setting = case.setting()
    return {
        "id": case.id,
        "part": held.part(setting),
        "gpu": setting.gpu,
        "model": setting.model,
        "workload": setting.workload,
        "degraded": list(case.degrade),
        "files": {path.name: _sha256(path) for path in sorted(run.iterdir()) if path.is_file()},
    }


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _write_json(path: Path, value: dict[str, Any]) -> None:
    write_atomically(path, msgspec.json.format(msgspec.json.encode(value), indent=1) + b"\n")
