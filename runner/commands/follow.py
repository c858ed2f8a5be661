"""Following a submitted experiment to its end, and fetching what it left."""

from __future__ import annotations

import re
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from runner.artifacts.budget import Budget
from runner.artifacts.unpacking import unpack
from runner.attempt.record import Record
from runner.errors import Unavailable
from runner.log import printable
from runner.message.request import Artifact, Request
from runner.storage.base import CHUNK, NotFound
from runner.storage.stores import Stores
from runner.units import format_duration

METADATA = "_metadata"
RESULTS = ("output", "modeldir", "retval", "tb", "_metrics")
"""What an experiment may leave behind, next to its metadata: the labels that StudioML's own client gives."""

# How often the record is looked at, in seconds.
_POLL = 0.5


def follow(wanted: Request, stores: Stores, *, directory: Path, timeout: float) -> int:
    """Wait for the experiment's end and fetch what it left; return the exit status."""
    try:
        outcome = _outcome(wanted, stores, timeout)
    except KeyboardInterrupt:
        told = printable(f"studio-runner: not waiting any more: {wanted.key} goes on without us")
        print(told, file=sys.stderr)  # noqa: T201
        raise
    print(printable(str(outcome.get("sentence") or "it is over, but no runner said how")))  # noqa: T201
    for label, path in fetch_results(wanted, stores, directory):
        print(f"  {label:10} {path}")  # noqa: T201
    metadata = wanted.artifacts[METADATA]
    accession = str(outcome.get("accession"))
    name = f"scrape-host-{accession}.json"
    # Whoever can write to the store says which: it must not name another file here.
    if re.fullmatch(r"[\w.-]+", accession) and _fetched_file(metadata, f"metadata/{name}", stores, directory / name):
        print(f"  {'metadata':10} {directory / name}")  # noqa: T201
    return 0 if outcome.get("verdict") == "ok" else 1


def fetch_results(wanted: Request, stores: Stores, directory: Path) -> Iterator[tuple[str, Path]]:
    """Unpack each result below a directory; yield its label and where it is."""
    for label in RESULTS:
        if _fetched(wanted.artifacts[label], stores, directory / label):
            yield label, directory / label


def _outcome(wanted: Request, stores: Stores, timeout: float) -> dict[str, Any]:
    """Follow the record until it says that the experiment is over; tell each change. Raises Unavailable in the end."""
    assert wanted.record is not None  # noqa: S101 -- the message names a database
    record, told = Record(wanted.record, stores), ""
    end = time.monotonic() + timeout
    while time.monotonic() < end:
        found = _read(record)
        status = str(found.get("status"))
        if status in ("finished", "stopped"):
            outcome = found.get("outcome")
            return outcome if isinstance(outcome, dict) else {}
        if status != told:
            print(printable(f"{wanted.key} is {status}"), flush=True)  # noqa: T201
            told = status
        time.sleep(_POLL)
    raise Unavailable(f"{wanted.key} is not over after {format_duration(timeout)}: it goes on without us")


def _read(record: Record) -> dict[str, Any]:
    """Return the record; its status says so while its store does not answer: a laptop's network comes and goes."""
    try:
        return record.read() or {"status": "no longer known: its record is not in the store"}
    except Unavailable as error:
        return {"status": f"out of sight: {error}"}


def _fetched(artifact: Artifact, stores: Stores, directory: Path) -> bool:
    """Unpack a result if there is one."""
    try:
        with stores.reach(artifact.location, artifact.credentials).open(artifact.location.key) as stored:
            directory.mkdir(parents=True, exist_ok=True)
            unpack(stored.stream, directory, Budget(None))
    except NotFound:
        return False
    return True


def _fetched_file(artifact: Artifact, key: str, stores: Stores, path: Path) -> bool:
    try:
        with stores.reach(artifact.location, artifact.credentials).open(key) as stored:
            path.parent.mkdir(parents=True, exist_ok=True)
            with path.open("wb") as file:
                while data := stored.stream.read(CHUNK):
                    file.write(data)
    except NotFound:
        return False
    return True
