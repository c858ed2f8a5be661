"""How an attempt ended: in one word, in a line for programs and a sentence for people, and whose doing it was."""

from __future__ import annotations

import errno
import json
import signal

from runner.attempt.lease import Elsewhere, Repeated
from runner.attempt.watch import Cancelled, Stopped
from runner.errors import ExperimentError, MachineError, RunnerError, Unavailable
from runner.events import Finished
from runner.message.request import Request
from runner.units import format_duration

# What an error means for the message, its word where it has none of its own ("": the phase says), and the verb.
_MEANINGS: tuple[tuple[type[RunnerError], str, str, str], ...] = (
    (ExperimentError, "failed", "", "failed"),
    (Unavailable, "unavailable", "machine", "was given up"),
    (MachineError, "misfit", "machine", "cannot run on this machine"),
    (Cancelled, "cancelled", "stopped", "was given up"),
    (Stopped, "stopped", "stopped", "was given up"),
    (Elsewhere, "elsewhere", "", "is not needed here"),
    (Repeated, "repeated", "", "was given up"),
)
_OF_PHASE = {"fetch": "artifact", "prepare": "pip", "run": "script", "return": "artifact"}


def completed(name: str) -> Finished:
    """All went well with the attempt ``name``."""
    return Finished("completed", f"{name} completed", verdict="ok", exit_status=0)


def judge(name: str, error: RunnerError, phase: str) -> Finished:
    """Say how the attempt ``name`` ended, which met an error in a phase (see events.Phase)."""
    kind = next((each for each in _MEANINGS if isinstance(error, each[0])), _MEANINGS[1])
    _, outcome, word, verb = kind
    verdict = error.verdict or word or (_OF_PHASE.get(phase, "machine") if outcome == "failed" else "")
    status = error.exit_status if isinstance(error, ScriptError) else None
    return Finished(outcome, f"{name} {verb}: {error}", verdict=verdict, exit_status=status)


def not_stored(name: str, finished: Finished, error: RunnerError) -> Finished:
    """Say how an attempt ended whose results cannot be stored: one that completed did not happen then."""
    sentence = f"{finished.sentence}, but its results could not be stored: {error}"
    judged = judge(name, error, "return")
    if finished.outcome == "completed":
        return Finished(judged.outcome, sentence, verdict=judged.verdict)
    if finished.outcome == "failed" and not isinstance(error, ExperimentError):
        return Finished("unavailable", sentence, verdict=judged.verdict)
    return Finished(finished.outcome, sentence, verdict=finished.verdict, exit_status=finished.exit_status)


def described(finished: Finished, attempt: int) -> dict[str, object]:
    """Return the verdict as members of JSON objects: of the metadata, and of the client's record."""
    status = {} if finished.exit_status is None else {"exit_status": finished.exit_status}
    return {
        "verdict": finished.verdict,
        "fault": finished.fault,
        "attempt": attempt,
        **status,
        "sentence": finished.sentence,
    }


def line(finished: Finished, attempt: int) -> str:
    """Return the verdict as a line of JSON that also says where in the metadata it belongs."""
    return json.dumps({"studioml": {"verdict": described(finished, attempt)}})


class ScriptError(ExperimentError):
    """The experiment's program ended with that status, negative for a signal."""

    def __init__(self, sentence: str, exit_status: int, *, verdict: str = "") -> None:
        super().__init__(sentence, verdict=verdict)
        self.exit_status = exit_status


def of_script(wanted: Request, status: int, exception: str) -> ScriptError:
    """Say how a program ended that failed; ``exception`` is what its traceback came to, "" without one."""
    what = wanted.filename if wanted.filename != "-m" else f"module {wanted.args[0]}"
    how = f"was killed by {_signal_name(-status)}" if status < 0 else f"ended with exit status {status}"
    sentence = f"{what} {how}" + (f": {exception}" if exception else "")
    if status == -signal.SIGXFSZ or f"[Errno {errno.EFBIG}]" in exception:
        return ScriptError(f"{sentence} (see --max-file-size)", status, verdict="disk")
    return ScriptError(sentence, status)


def late(wanted: Request, word: str) -> ExperimentError:
    """Say where the time limit of an attempt comes from, for when it is up; ``word`` is that of the verdict."""
    given = {"max_duration": wanted.max_duration, "experimentLifetime": wanted.lifetime}
    limits = [f"{name} {format_duration(value)}" for name, value in given.items() if value]
    which = ", ".join(limits) or "96h, since the message sets none"
    return ExperimentError(f"it was stopped at its time limit ({which})", verdict=word)


def _signal_name(number: int) -> str:
    try:
        return signal.Signals(number).name
    except ValueError:
        return f"signal {number}"
