"""``studio-runner listen``: show the reports of experiments, as an experimenter reads them from a response queue."""

from __future__ import annotations

import json
import os
import sys
import time
from collections.abc import Callable, Iterable, Sequence
from contextlib import ExitStack, closing
from dataclasses import dataclass
from functools import partial
from typing import Any

from runner import log
from runner.errors import ConfigError, MachineError, RequestError, Unavailable
from runner.lifecycle import Signals
from runner.loop import Loop
from runner.message import strict_json
from runner.options.reading import option, read
from runner.options.settings import ServerSettings
from runner.options.values import boolean, count
from runner.queues import carries_reports, responses_of
from runner.queues.base import Delivery, QueueServer
from runner.queues.servers import open_servers
from runner.units import format_duration, parse_duration

_USAGE = """studio-runner listen [option ...] QUEUE

Shows the reports of the experiments in QUEUE, one a line, and takes them off their queue: QUEUE_response, which may be
named itself. A report that cannot be opened with the key is dropped, and said to be so on standard error.
Every option is an environment variable too: where the queues are as for the runner, all others begin with STUDIO_."""

# The longest wait without a look at directory queues and at the time, in seconds.
_TICK = 0.5
# Until then a queue that is there should have been found, in seconds.
_SEARCH = 10.0

_own = partial(option, prefix="STUDIO_")


@dataclass(frozen=True)
class ListenSettings(ServerSettings):
    """The options of ``listen``."""

    private_key: str = _own("", "the key that opens the reports, PEM or OpenSSH's form", metavar="FILE")
    passphrase_file: str = _own("", "the passphrase of that key", metavar="FILE")
    experiment: str = _own(
        "", "show only the reports of this one; those of others are taken off the queue all the same", metavar="KEY"
    )
    json: bool = _own(False, "show each report as the JSON object that it is", boolean, metavar="BOOL")
    limit: int = _own(0, "stop after so many reports were shown [0: never]", count, metavar="N")
    timeout: float = _own(0.0, "stop after this long [0: never]", parse_duration, metavar="DURATION")

    def faults(self) -> list[str]:
        """What is wrong with the options taken together."""
        found = super().faults()
        if not self.private_key:
            found.append("reports are encrypted: give --private-key")
        return found


def main(arguments: Sequence[str]) -> int:
    """Show reports until told to stop; return the exit status.

    Raises ConfigError, Unavailable when fewer than ``--limit`` reports came in time, and MachineError when they cannot
    be written.
    """
    settings, words = read(ListenSettings, arguments, os.environ, usage=_USAGE, words=True)
    if len(words) != 1:
        raise ConfigError("name one queue: see studio-runner listen --help")
    log.start(log.Style.of({**os.environ, "LOGXI": os.environ.get("LOGXI") or "*=WRN"}))
    names = (words[0],) if carries_reports(words[0]) else responses_of(words[0])
    display = Display(settings, _opener(settings))
    with Signals() as signals, closing(Loop()) as loop, ExitStack() as stack:
        loop.add_handler(signals.fd, lambda _fd, _events: signals.drain(), loop.READ)
        servers = open_servers(settings, loop, lambda name: name in names, (_work_queue(words[0]),))
        for server in servers:
            stack.callback(server.close)
        loop.call_later(_SEARCH, partial(_tell_if_missing, servers, names))
        late = time.monotonic() + (settings.timeout or float("inf"))
        while not (signals.stops or display.done) and time.monotonic() < late:
            _step(servers, names, display, loop)
    if settings.limit and not (display.done or signals.stops):
        raise Unavailable(
            f"{display.shown} of {settings.limit} reports came in {format_duration(settings.timeout)} on "
            f"{' or '.join(names)}"
        )
    return 0


def _step(servers: Iterable[QueueServer], names: Sequence[str], display: Display, loop: Loop) -> None:
    """Show one report, or wait for one."""
    delivery = _next(servers, names)
    if delivery:
        display.show(delivery)
    loop.run_once(0 if delivery else _TICK)


def _tell_if_missing(servers: Iterable[QueueServer], names: Sequence[str]) -> None:
    if not any(name in server.queues() for server in servers for name in names):
        print(f"studio-runner: there is no queue {' or '.join(names)} yet: waiting for it", file=sys.stderr)  # noqa: T201


def _work_queue(name: str) -> str:
    """Return the name of the queue that a queue's reports are about; a work queue's own."""
    if not carries_reports(name):
        return name
    fifo = ".fifo" if name.endswith(".fifo") else ""
    return name.removesuffix(fifo).removesuffix("_response") + fifo


def _opener(settings: ListenSettings) -> Callable[[bytes], bytes]:
    """Return what opens a sealed report. Raises ConfigError."""
    from runner.crypto.key_files import content, of_file, passphrase_of  # noqa: PLC0415 -- its libraries take a while
    from runner.crypto.sealing import open_sealed, read_private_key  # noqa: PLC0415

    passphrase = passphrase_of(content(settings.passphrase_file)) if settings.passphrase_file else None
    return partial(open_sealed, key=of_file(settings.private_key, lambda data: read_private_key(data, passphrase)))


def _next(servers: Iterable[QueueServer], names: Sequence[str]) -> Delivery | None:
    """Take a report from wherever there is one."""
    for server in servers:
        there = server.queues()
        for name in names:
            if name in there and (delivery := server.take(name)):
                return delivery
    return None


class Display:
    """Writes reports to standard output and settles their deliveries; ``open_`` opens what is sealed."""

    def __init__(self, settings: ListenSettings, open_: Callable[[bytes], bytes]) -> None:
        self._settings, self._open = settings, open_
        self._closed = False
        self.shown = 0

    @property
    def done(self) -> bool:
        """True when enough was shown, or when nobody reads any more."""
        return self._closed or 0 < self._settings.limit <= self.shown

    def show(self, delivery: Delivery) -> None:
        """Show a report if it is wanted; only when it is written it is off the queue. Raises MachineError."""
        try:
            report = _parsed(self._open(delivery.body))
        except RequestError as error:
            print(f"studio-runner: a message of queue {delivery.queue} is dropped: {error}", file=sys.stderr)  # noqa: T201
            delivery.refuse()
            return
        if self._settings.experiment in ("", report.get("experimentId")) and not self._write(report):
            delivery.give_back()
            return
        delivery.ack()

    def _write(self, report: dict[str, Any]) -> bool:
        """Write a line; False when nobody is there to read it."""
        # With escapes for all that is not ASCII: a terminal obeys some characters beyond.
        line = json.dumps(report) if self._settings.json else line_of(report)
        try:
            sys.stdout.buffer.write(f"{line}\n".encode(sys.stdout.encoding, "backslashreplace"))
            sys.stdout.flush()
        except BrokenPipeError:
            # Or else Python would find out once more, and complain, when it ends.
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
            self._closed = True
            return False
        except OSError as error:
            raise MachineError(f"reports cannot be written to standard output: {error.strerror}") from error
        self.shown += 1
        return True


def _parsed(body: bytes) -> dict[str, Any]:
    try:
        report = strict_json.loads(body.decode())
    except ValueError as error:
        raise RequestError("it is not the JSON of a report") from error
    if not isinstance(report, dict):
        raise RequestError("it is not the JSON of a report")
    return report


def line_of(report: dict[str, Any]) -> str:
    """Write a report for people, in one line that does nothing to a terminal."""
    entry, progress = _object(report.get("logging")), _object(report.get("progress"))
    error = _object(progress.get("error"))
    kind = progress.get("state", "Prestart") if progress else entry.get("severity", "")
    parts = [report.get("text"), entry.get("message"), progress.get("json"), error.get("msg")]
    if "code" in error:
        parts.append(f"(code {error['code']})")
    parts += [f"{name}={value}" for name, value in _object(entry.get("fields")).items()]
    said = [report.get("time") or "-", report.get("experimentId") or "-", kind, *parts]
    return "  ".join(_harmless(str(part)) for part in said if part)


def _object(value: object) -> dict[str, Any]:
    return value if isinstance(value, dict) else {}


def _harmless(text: str) -> str:
    """Write what a terminal would obey, or does not show, as an escape."""
    return "".join(each if each.isprintable() or each == "\t" else repr(each)[1:-1] for each in text).expandtabs()
