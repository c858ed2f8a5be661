"""Finding out, again and again, which SQS accounts there are and which queues they have."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from threading import Event, Thread
from typing import NamedTuple

from runner.errors import ConfigError, Unavailable
from runner.queues import responses_of
from runner.queues.base import Refreshed
from runner.queues.sqs_account import Account, Options, Place, Refused, Source, sources

log = logging.getLogger(__name__)

# All in seconds. How often it is looked whether something is due, directories of credentials above all.
_PACE = 5.0
# How often an account is asked for its queues: seldom when they are few, as long polls are nearly all that an idle
# queue may cost (200 requests an hour each, these among them).
_SOONEST, _LATEST = 15.0, 240.0
_NAMED = 300.0


class Found(NamedTuple):
    """All queues by name, those that were there once, and are deleted, and how the search for them goes."""

    places: Mapping[str, Place]
    gone: frozenset[str]
    refreshed: tuple[Refreshed, ...]


@dataclass
class _Known:
    """An account, and what is known of it."""

    account: Account
    mark: str
    due: float = 0.0
    rounds: int = 0
    failed: int = 0
    trouble: str = ""
    urls: dict[str, str] = field(default_factory=dict)


class Search:
    """Looks in a thread of its own, in which ``found`` is called with each result.

    With ``names`` it is asked for these queues only, and for those of their reports.
    """

    def __init__(self, options: Options, names: tuple[str, ...], found: Callable[[Found], object]) -> None:
        self._options, self._names, self._found = options, names, found
        self._accounts: dict[str, _Known] = {}
        self._gone: set[str] = set()
        self._unmet: dict[str, str] = {}
        self._said: dict[str, str] = {}
        self._closed = Event()
        Thread(target=self._run, name="sqs-search", daemon=True).start()

    def close(self) -> None:
        """Begin nothing more."""
        self._closed.set()

    def _run(self) -> None:
        while not self._closed.is_set():
            try:
                self._unmet = {}
                self._meet(sources(self._options))
                self._over("sources")
            except Unavailable as error:
                self._unmet["sources"] = str(error)
                self._trouble("sources", str(error))
            for known in self._accounts.values():
                if time.monotonic() >= known.due:
                    self._ask(known)
            self._found(Found(self._places(), frozenset(self._gone), self._refreshed()))
            self._closed.wait(_PACE)

    def _refreshed(self) -> tuple[Refreshed, ...]:
        """Tell of each account, and of what keeps others from being known."""
        known = [Refreshed(name, each.rounds, each.failed, each.trouble) for name, each in self._accounts.items()]
        if self._unmet or not known:
            known.append(Refreshed("SQS", 0, 0, "; ".join(self._unmet.values()) or "there are no credentials"))
        return tuple(known)

    def _meet(self, there: list[Source]) -> None:
        """Get to know accounts that are new, and forget those whose credentials are gone."""
        for name in self._accounts.keys() - {source.name for source in there}:
            log.info("SQS: the credentials in %s are gone, and its queues with them", name)
            del self._accounts[name]
        for source in there:
            known = self._accounts.get(source.name)
            try:
                if known is None:
                    self._accounts[source.name] = _Known(Account(source, self._options), source.mark)
                    log.info("SQS: looking for the queues of %s", source.name)
                elif known.mark != source.mark:
                    known.mark, known.due = source.mark, 0.0
                    known.account.renew(source, self._options)
                    log.info("SQS: the credentials in %s have changed", source.name)
                self._over(source.name)
            except ConfigError as error:
                self._unmet[source.name] = str(error)
                self._trouble(source.name, str(error))

    def _ask(self, known: _Known) -> None:
        """Ask an account for its queues; what it does not tell stays as it was."""
        subject = f"{known.account.name}, queues"
        try:
            urls = self._named(known) if self._names else known.account.queues()
            for name in known.urls.keys() - urls.keys():
                # Lists are behind for a minute, in both directions.
                if url := known.account.url(name):
                    urls[name] = url
                else:
                    self._gone.add(name)
        except (Refused, Unavailable) as error:
            known.due = time.monotonic() + _SOONEST
            known.failed, known.trouble = known.failed + 1, str(error)
            self._trouble(subject, f"the queues of SQS cannot be found: {error}")
            return
        self._over(subject)
        self._gone -= urls.keys()
        known.urls, known.rounds, known.trouble = urls, known.rounds + 1, ""
        known.due = time.monotonic() + self._interval(urls)

    def _interval(self, urls: Mapping[str, str]) -> float:
        if self._names:
            return _NAMED if set(self._names) <= urls.keys() else _SOONEST
        return max(_SOONEST, _LATEST / len(urls)) if urls else _SOONEST

    def _named(self, known: _Known) -> dict[str, str]:
        """Ask for each queue by its name, and every other time for those of the reports."""
        urls = dict(known.urls)
        reports = () if known.rounds % 2 else tuple(name for queue in self._names for name in responses_of(queue))
        for name in self._names + reports:
            if url := known.account.url(name):
                urls[name] = url
            else:
                urls.pop(name, None)
        return urls

    def _places(self) -> dict[str, Place]:
        places: dict[str, Place] = {}
        for known in self._accounts.values():
            for name, url in known.urls.items():
                first = places.setdefault(name, Place(known.account, url))
                if first.url != url:
                    self._trouble(
                        name, f"queue {name} is in several accounts: only that of {first.account.name} is used"
                    )
        return places

    def _trouble(self, subject: str, text: str) -> None:
        """Say what is wrong, once."""
        if self._said.get(subject) != text:
            log.warning("%s", text)
            self._said[subject] = text

    def _over(self, subject: str) -> None:
        self._said.pop(subject, None)
