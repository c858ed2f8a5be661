"""Whether the queue servers can be reached, which of their queues are read, and for how long messages may be held."""

from __future__ import annotations

import os
from collections import defaultdict
from collections.abc import Collection, Iterator, Mapping
from pathlib import Path

from runner.commands.doctor.base import Finding, Subject, fail, ok, skip, warn
from runner.options.settings import Settings
from runner.queues.servers import sqs_options, work_queues
from runner.units import format_duration

# So many names are told.
_TOLD = 10
# Who gets a message back sooner than after so many seconds gets it back while it is being started.
_SHORT_WINDOW = 60.0


def rabbitmq(subject: Subject) -> Iterator[Finding]:
    """Look at RabbitMQ: the connection, the management API, the queues and how long they let a message be held."""
    given = subject.settings
    if not given.amqp_url:
        return
    from runner.queues import amqp  # noqa: PLC0415 -- only who uses a technology pays for it
    from runner.queues.management import Management  # noqa: PLC0415

    parameters = amqp.parameters_of(given.amqp_url, given.amqp_ca)
    amqp.waiting(given.amqp_url, (), ca=given.amqp_ca)
    where = amqp.name_of(parameters)
    yield ok(f"{where} lets user {parameters.credentials.username!r} into virtual host {parameters.virtual_host!r}")
    if given.queue:
        depths = amqp.waiting(given.amqp_url, given.queue, ca=given.amqp_ca)
        yield from _named(where, depths)
        return
    management = Management(given.amqp_mgt_url, parameters, given.amqp_ca)
    found = management.bound_queues()
    yield from _matching(where, found, given)
    ours = sorted(filter(work_queues(given), found))
    yield from _windows({name: management.window(name) for name in ours[:_TOLD]})


def sqs(subject: Subject) -> Iterator[Finding]:
    """Look at the queues of all SQS accounts."""
    given = subject.settings
    if not (given.sqs_certs or given.sqs_region):
        return
    from runner.queues.sqs_account import Account, Refused, sources  # noqa: PLC0415

    options = sqs_options(given)
    there = sources(options)
    if not there:
        yield fail(
            f"{given.sqs_certs} has no directory with credentials", "make one for each account, with an ini file in it"
        )
    for source in there:
        try:
            account = Account(source, options)
            if given.queue:
                found = {name: None if account.url(name) is None else 0 for name in given.queue}
                yield from _named(f"SQS, {account.name},", found)
            else:
                yield from _matching(f"SQS, {account.name},", account.queues(), given)
        except Refused as refusal:
            yield fail(str(refusal), "give these credentials the rights that docs/queues.md names")


def directory(subject: Subject) -> Iterator[Finding]:
    """Look at queues that are directories."""
    given = subject.settings
    if not given.queue_root:
        return
    root = Path(given.queue_root)
    names = [each.name for each in root.iterdir() if each.is_dir() and not each.name.startswith(".")]
    yield from _matching(str(root), names, given)
    for name in filter(work_queues(given), names):
        if not os.access(root / name, os.R_OK | os.W_OK | os.X_OK):
            yield fail(
                f"{root / name} may not be read and written by this user",
                "change its owner or its mode: messages are removed when they are done",
            )


def none(subject: Subject) -> Iterator[Finding]:
    """Say so when there is nothing to look at."""
    given = subject.settings
    if not (given.amqp_url or given.queue_root or given.sqs_certs or given.sqs_region):
        yield skip("no queue server is named")


def _matching(where: str, found: Collection[str], given: Settings) -> Iterator[Finding]:
    """Tell which of the queues that are there work is taken from."""
    ours = sorted(filter(work_queues(given), found))
    others = sorted(set(found) - set(ours))
    besides = f"; not from {_listed(others)}" if others else ""
    if ours:
        yield ok(f"{where} has queues to take work from: {_listed(ours)}{besides}")
    elif others:
        yield warn(
            f"{where} has queues, but takes no work from them: {_listed(others)}",
            f"see --queue-match {given.queue_match!r} and --queue-mismatch {given.queue_mismatch!r}; "
            "queues that end in _response carry reports",
        )
    else:
        yield warn(f"{where} has no queues yet", "submit an experiment, which makes one, or make it; the runner waits")


def _named(where: str, depths: Mapping[str, int | None]) -> Iterator[Finding]:
    """Tell which of the queues that --queue names are there."""
    for name, depth in depths.items():
        if depth is None:
            yield warn(f"{where} has no queue {name}", "make it, or check --queue; the runner waits for it")
        else:
            yield ok(f"{where} has queue {name}")


def _windows(windows: Mapping[str, float | None]) -> Iterator[Finding]:
    """Tell for how long messages may be held: those of longer experiments are delivered again."""
    by_length = defaultdict(list)
    for name, window in windows.items():
        by_length[window].append(name)
    for length, names in by_length.items():
        if length is None:
            yield ok(
                f"messages of {_listed(names)} may be held for the broker's consumer_timeout, 30m unless it is "
                "configured: longer experiments go on, and their messages are recognised when they come again"
            )
        elif length < _SHORT_WINDOW:
            yield warn(
                f"messages of {_listed(names)} may be held for {format_duration(length)} only",
                "raise the queues' consumer timeout: each message comes again while it is being worked on",
            )
        else:
            yield ok(
                f"messages of {_listed(names)} may be held for {format_duration(length)}; longer experiments go on"
            )


def _listed(names: Collection[str]) -> str:
    told = list(names)[:_TOLD]
    more = len(names) - len(told)
    return ", ".join(told) + (f" and {more} more" if more else "")
