"""``studio-runner validate``: all that is wrong with a message, or what it asks for."""

from __future__ import annotations

import os
import shlex
import time
from collections.abc import Iterator, Sequence

from runner.commands import message_file
from runner.commands.message_file import ByHand
from runner.errors import ConfigError
from runner.log import printable
from runner.message.request import Request
from runner.options.reading import read
from runner.units import format_duration, format_size

_USAGE = """studio-runner validate [option ...] MESSAGE.json

Says all that is wrong with a message at once, or else what it asks for; without its secrets. - is standard input. An
encrypted message is opened with the keys of --encrypt-dir. Nothing is fetched or run, and no server is asked: see
studio-runner doctor for that. The exit status is 0 for a message that can be understood, 1 for one that cannot."""

# So many requirements and variables are told.
_TOLD = 8


def main(arguments: Sequence[str]) -> int:
    """Tell what a message asks for; return 0. Raises RequestError with all its faults."""
    settings, rest = read(ByHand, arguments, os.environ, usage=_USAGE, words=True)
    if len(rest) != 1:
        raise ConfigError("name one file with a message: studio-runner validate MESSAGE.json")
    for name, what in _described(message_file.read(rest[0], settings)):
        print(f"{name:12} {what}")  # noqa: T201 -- talking to the user
    return 0


def _described(wanted: Request) -> Iterator[tuple[str, str]]:
    """Yield what there is to say, in pairs of a word and a sentence."""
    yield "experiment", f"{wanted.key!r}" + (f" of project {wanted.project!r}" if wanted.project else "")
    if wanted.expired(time.time()):
        yield "", "its lifetime is over: no runner will run it"
    program = ["-m", *wanted.args] if wanted.filename == "-m" else [wanted.filename, *wanted.args]
    yield "runs", f"{printable(shlex.join(program))} with Python {wanted.pythonver}"
    yield "installs", _listed([*wanted.pythonenv, *wanted.pip]) or "nothing"
    asked = wanted.resources
    gpus = f", {asked.gpus} GPU slots" if asked.gpus else ""
    cpus = f"{asked.cpus} cpu{'' if asked.cpus == 1 else 's'}"
    yield "wants", f"{cpus}, {_size(asked.ram)} ram, {_size(asked.hdd)} hdd{gpus}"
    yield "ends", _limits(wanted)
    yield (
        "checkpoints",
        f"every {format_duration(wanted.save_frequency)}" if wanted.save_frequency else "at the end only",
    )
    if wanted.env:
        yield "variables", _listed(sorted(wanted.env))
    for label, artifact in wanted.artifacts.items():
        how = "read and written" if artifact.mutable else "read"
        yield (
            "artifact",
            f"{label}: {how}{', unpacked' if artifact.unpack else ''}, {printable(str(artifact.location))}",
        )


def _limits(wanted: Request) -> str:
    limits = {"max_duration": wanted.max_duration, "experimentLifetime": wanted.lifetime}
    told = [f"after {format_duration(value)} ({name})" for name, value in limits.items() if value]
    return " or ".join(told) or "after 96h, since it sets no limit"


def _size(size: int) -> str:
    return format_size(size) if size else "any"


def _listed(names: Sequence[str]) -> str:
    more = len(names) - _TOLD
    return printable(", ".join(names[:_TOLD])) + (f" and {more} more" if more > 0 else "")
