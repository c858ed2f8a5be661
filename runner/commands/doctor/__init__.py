"""``studio-runner doctor``: look at everything that a runner with these options needs, and say what to do about it."""

from __future__ import annotations

import json
import logging
import os
import platform
import sys
import time
from collections.abc import Iterator, Sequence

from runner import __version__
from runner.commands import message_file
from runner.commands.doctor import gpus, keys, kubernetes, machine, notices, pythons, queues, stores
from runner.commands.doctor.base import Check, DoctorSettings, Finding, Level, Subject, examine, fail, ok, warn
from runner.errors import ConfigError, MachineError, RequestError
from runner.message.request import Request
from runner.options.reading import gather

# In seconds: no check may take longer.
_LIMIT = 20.0

_USAGE = """studio-runner doctor [option ...] [MESSAGE.json]

Looks at all that a runner with these options needs, and says of each thing whether it is ok, and what to do if not:
options, keys, queues, stores, Pythons, package indexes, GPUs, disk, memory, clock. With a message, also at the stores
of its artifacts, with its credentials, and at whether it fits this machine. It takes no message from any queue. Into a
store it writes a few bytes, as _studio-runner-doctor. The exit status is 1 when something fails, and 2 for a command
line that cannot be understood."""


def main(arguments: Sequence[str]) -> int:
    """Look at everything; return 1 when something fails, else 0. Raises ConfigError."""
    settings, rest, faults = gather(DoctorSettings, arguments, os.environ, usage=_USAGE)
    if len(rest) > 1:
        raise ConfigError("name one file with a message at most: studio-runner doctor [option ...] [MESSAGE.json]")
    logging.getLogger("runner").addHandler(logging.NullHandler())  # everything is told in findings
    try:
        wanted, findings = _message(rest[0], settings) if rest else (None, [])
    except ConfigError as error:  # what is no message may be the value of a flag that is misspelt
        raise ConfigError([*faults, *error.faults]) from error
    subject = Subject(settings, tuple(faults), os.environ, wanted)
    checks = {"options": _options, "message": lambda _subject: findings, **_checks(subject)}
    found = examine(checks, subject, limit=_LIMIT)
    levels = _as_json(found) if settings.json else _as_lines(found)
    return 1 if Level.FAIL in levels else 0


def _checks(subject: Subject) -> dict[str, Check]:
    """Name all checks, in the order in which they are told. A new one is a function, and a line here."""
    groups = list(machine.groups())  # now, for the processes that other checks start would be in the runner's group
    return {
        "keys": keys.messages,
        "signers": keys.signers,
        "reports": keys.readers,
        "rabbitmq": queues.rabbitmq,
        "sqs": queues.sqs,
        "directory": queues.directory,
        "queues": queues.none,
        **stores.checks(subject),
        "python": pythons.pythons,
        "installer": pythons.installers,
        "index": pythons.indexes,
        "container": machine.containers,
        "gpu": gpus.cards,
        "machine": machine.resources,
        "limits": machine.limits,
        "cgroups": lambda _subject: groups,
        "working-dir": machine.working_directory,
        "disk": machine.disk,
        "clock": machine.clock,
        "kubernetes": kubernetes.rights,
        "slack": notices.slack,
    }


def _options(subject: Subject) -> Iterator[Finding]:
    for fault in subject.faults:
        yield fail(fault)
    if not subject.faults:
        yield ok(f"studio-runner {__version__} understands all options")


def _message(name: str, settings: DoctorSettings) -> tuple[Request | None, list[Finding]]:
    """Read a message, and say what is wrong with it. Raises ConfigError when there is no such file."""
    try:
        wanted = message_file.read(name, settings)
    except RequestError as error:
        return None, [fail(fault) for fault in error.faults]
    except MachineError as error:
        return None, [fail(str(error))]
    if wanted.expired(time.time()):
        return wanted, [warn(f"experiment {wanted.key!r} is past its lifetime", "submit it again")]
    return wanted, [ok(f"experiment {wanted.key!r} is a request that can be understood")]


def _as_lines(found: Iterator[tuple[str, Finding]]) -> set[Level]:
    levels = set()
    for name, finding in found:
        levels.add(finding.level)
        print(f"{finding.level.value:4}  {name:12} {finding.what}", flush=True)  # noqa: T201 -- talking to the user
        if finding.remedy:
            print(f"{'':19}→ {finding.remedy}", flush=True)  # noqa: T201
    return levels


def _as_json(found: Iterator[tuple[str, Finding]]) -> set[Level]:
    told = [
        {"check": name, "level": each.level.value, "what": each.what, "remedy": each.remedy} for name, each in found
    ]
    levels = {Level(each["level"]) for each in told}
    document = {"version": __version__, "host": platform.node(), "ok": Level.FAIL not in levels, "findings": told}
    json.dump(document, sys.stdout, indent=2, ensure_ascii=False)
    print()  # noqa: T201
    return levels
