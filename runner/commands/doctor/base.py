"""What a check is: a function that looks at one thing and says what it finds; and how all of them are made."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from enum import Enum
from functools import partial
from threading import Thread

from runner.errors import RunnerError
from runner.message.request import Request
from runner.options.reading import option
from runner.options.settings import Settings
from runner.options.values import boolean


class Level(Enum):
    """How well it is. ``SKIP``: there was nothing to look at."""

    OK = "ok"
    SKIP = "skip"
    WARN = "warn"
    FAIL = "fail"


@dataclass(frozen=True)
class Finding:
    """One line of the answer: what was found, and what is to be done about it ("" for nothing)."""

    level: Level
    what: str
    remedy: str = ""


ok = partial(Finding, Level.OK)
skip = partial(Finding, Level.SKIP)
warn = partial(Finding, Level.WARN)
fail = partial(Finding, Level.FAIL)


@dataclass(frozen=True)
class DoctorSettings(Settings):
    """The options of the runner, and those of ``doctor``."""

    store: str = option(
        "",
        "store to read from and write to with the AWS keys of the environment, s3://HOST[:PORT]/BUCKET, gs://BUCKET or "
        "file:///DIRECTORY",
        metavar="URL",
        prefix="STUDIO_",
    )
    json: bool = option(False, "say it as one JSON document", boolean, metavar="BOOL", prefix="STUDIO_")


@dataclass(frozen=True)
class Subject:
    """What is looked at: the options, mistakes in them, the environment, and a message if one was given."""

    settings: DoctorSettings
    faults: tuple[str, ...]
    environ: Mapping[str, str]
    wanted: Request | None = None


Check = Callable[[Subject], Iterable[Finding]]
"""Looks at one thing. It may wait for a server; what it raises of ours, or of the system's, is a failure found."""


@dataclass
class _Made:
    """A check being made in a thread of its own, and what it has found until now."""

    check: Check
    found: list[Finding] = field(default_factory=list)
    ended: bool = False

    def make(self, subject: Subject) -> None:
        try:
            for finding in self.check(subject):
                self.found.append(finding)
            self.ended = True
        except RunnerError as error:
            self.found.append(fail(str(error)))
            self.ended = True
        except OSError as error:
            self.found.append(fail(f"{error.filename or 'the system'}: {error.strerror or type(error).__name__}"))
            self.ended = True


def examine(checks: Mapping[str, Check], subject: Subject, *, limit: float) -> Iterator[tuple[str, Finding]]:
    """Make all checks side by side, each for ``limit`` seconds at most; yield what they find, in their order.

    The threads of those that take longer are left behind: they end with the process.
    """
    made = {name: _Made(check) for name, check in checks.items()}
    threads = {name: Thread(target=each.make, args=(subject,), daemon=True) for name, each in made.items()}
    for thread in threads.values():
        thread.start()
    end = time.monotonic() + limit
    for name, thread in threads.items():
        thread.join(max(0.0, end - time.monotonic()))
        yield from ((name, finding) for finding in list(made[name].found))
        if thread.is_alive():
            yield (
                name,
                fail(f"gave no answer within {limit:g} s", "see whether a firewall or a slow disk is in the way"),
            )
        elif not made[name].ended:
            yield name, fail("this check broke down: that is a mistake in the runner, please report the traceback")
