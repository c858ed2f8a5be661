"""The end of an attempt: the verdict is told, results are returned, the client's record and the lease are settled."""

from __future__ import annotations

import time
from contextlib import suppress
from dataclasses import replace
from functools import partial

from runner.attempt import verdict
from runner.attempt.console import Console
from runner.attempt.metadata_files import stamp
from runner.attempt.parts import Parts
from runner.attempt.usage import Usage
from runner.errors import ExperimentError, MachineError, Unavailable
from runner.events import Finished


def tell(parts: Parts, finished: Finished, *, console: Console | None, usage: Usage | None) -> Finished:
    """Put the verdict where people and programs look for it: metadata, log, and with its lines reports.

    There is no ``console`` when not even the log could be opened, and no ``usage`` when the experiment did not run.
    Returns the verdict as it was told, without secrets.
    """
    finished = _without_secrets(parts, finished)
    if usage:
        parts.metadata.add(resources=usage.described(parts.disk.most, parts.watch.gpu_memory))
    if console:
        with suppress(MachineError):  # a full disk, perhaps; the supervisor's log has it too
            console.say(finished.sentence)
            console.write(verdict.line(finished, parts.number))
    parts.metadata.add(verdict=verdict.described(finished, parts.number))
    return finished


def settle(parts: Parts, finished: Finished) -> Finished:
    """Return the results, and leave word for the client and for who gets the message next; return how it all ended.

    The experiment and its checkpoints have to be over. Raises Orphaned.
    """
    if finished.outcome in ("completed", "failed", "cancelled", "stopped"):
        finished = _return(parts, finished)
    finished = replace(finished, last=finished.outcome == "failed" and parts.last)
    if finished.outcome not in ("elsewhere", "repeated"):
        _settle_record(parts, finished)
        _leave_lease(parts, finished)
    parts.tell_moved()
    return finished


def _return(parts: Parts, finished: Finished) -> Finished:
    """Store everything; results that cannot be stored mean that the attempt did not happen."""
    parts.enter("return")
    status = "completed" if finished.outcome == "completed" else "failed"
    try:
        parts.metadata.write(status, stop_time=stamp())
        parts.worker.wait(partial(parts.artifacts.upload, parts.back), parts.watch)
    except (ExperimentError, Unavailable, MachineError) as error:
        return _without_secrets(parts, verdict.not_stored(parts.name, finished, error))
    return finished


def _settle_record(parts: Parts, finished: Finished) -> None:
    """Tell the client how it ended, or that it will be tried again."""
    over = finished.outcome in ("completed", "cancelled") or finished.last
    status = "stopped" if finished.outcome == "cancelled" else "finished" if over else "waiting"
    outcome = {**verdict.described(finished, parts.number), "accession": parts.metadata.accession}
    times = {"time_finished": time.time()} if over else {}
    parts.book.settle(parts.watch, status, outcome=outcome, **times)


def _leave_lease(parts: Parts, finished: Finished) -> None:
    """Leave word for whoever gets the message next, if anybody does."""
    failures = parts.number - (finished.outcome != "failed")
    over = finished.outcome in ("completed", "cancelled")
    # After the last failure its message is sent again only by somebody who wants it to be tried anew.
    failures = 0 if finished.last else failures
    parts.lease.leave(parts.watch, over=over, failures=failures, sentence=finished.sentence)


def _without_secrets(parts: Parts, finished: Finished) -> Finished:
    return replace(finished, sentence=parts.secrets.mask_text(finished.sentence))
