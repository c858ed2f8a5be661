"""Finding out which queues a RabbitMQ has, again and again: from its management API, or by asking for known names."""

from __future__ import annotations

import logging
from collections.abc import Callable, Collection
from functools import partial
from threading import Thread

import pika
from pika import exceptions
from pika.channel import Channel

from runner.errors import Unavailable
from runner.loop import Loop
from runner.queues.management import Management
from runner.units import format_duration

log = logging.getLogger(__name__)

# How often to look, in seconds.
_PACE = 4.0

Found = Callable[[set[str] | None, str], None]
"""Called in the loop with the names found, or with None and the trouble in words."""


class Listed:
    """All queues that clients have bound to their exchange, as the management API lists them."""

    def __init__(self, loop: Loop, management: Management, found: Found) -> None:
        self._loop, self._management, self._found = loop, management, found
        self._closed = False
        self._known: set[str] = set()
        self.windows: dict[str, float] = {}
        """How long queues let a message be held, in seconds, where they say so."""
        self._look()

    def close(self) -> None:
        """Look no more."""
        self._closed = True

    def _look(self) -> None:
        if not self._closed:
            Thread(target=self._ask, name="management", daemon=True).start()

    def _ask(self) -> None:
        """In a thread of its own: nothing of the loop's is touched but by add_callback."""
        try:
            names, trouble = self._management.bound_queues(), ""
            self._warn_of_windows(names - self._known)
            self._known = names
        except Unavailable as error:
            names, trouble = None, str(error)
        self._loop.add_callback(partial(self._told, names, trouble))

    def _warn_of_windows(self, names: set[str]) -> None:
        for name in sorted(names):
            if window := self._management.window(name):
                self.windows[name] = window
                log.warning(
                    "queue %s: the broker takes a message back after %s, and this runner takes it again then",
                    *(name, format_duration(window)),
                )

    def _told(self, names: set[str] | None, trouble: str) -> None:
        self._loop.call_later(_PACE, self._look)
        if not self._closed:
            self._found(names, trouble)


class Named:
    """Of some names, those that are queues: each is declared passively, which makes nothing (protocol section 3)."""

    def __init__(
        self, loop: Loop, names: Collection[str], connection: Callable[[], pika.SelectConnection], found: Found
    ) -> None:
        self._loop, self._names, self._connection, self._found = loop, names, connection, found
        self._closed = False
        self._asking = False
        self.windows: dict[str, float] = {}
        """None are known: only the management API tells."""
        self._look()

    def close(self) -> None:
        """Look no more."""
        self._closed = True

    def _look(self) -> None:
        if self._closed:
            return
        self._loop.call_later(_PACE, self._look)
        if not self._asking and self._connection().is_open:
            self._asking = True
            _Round(self._connection(), self._names, self._over)

    def _over(self, names: set[str] | None, trouble: str) -> None:
        self._asking = False
        if not self._closed and (names is not None or trouble):
            self._found(names, trouble)


class _Round:
    """One question for each name, on a channel of its own, which the broker closes when there is no such queue."""

    def __init__(self, connection: pika.SelectConnection, names: Collection[str], over: Found) -> None:
        self._over = over
        self._there: set[str] = set()
        self._trouble, self._cut = "", False
        self._waiting = len(names)
        for name in names:
            try:
                channel = connection.channel(on_open_callback=partial(self._declare, name))
            except exceptions.NoFreeChannels:
                self._answered(None, exceptions.ChannelClosedByBroker(504, "it allows no more channels"))
            else:
                channel.add_on_close_callback(self._answered)

    def _declare(self, name: str, channel: Channel) -> None:
        channel.queue_declare(name, passive=True, callback=lambda _frame: self._is_there(name, channel))

    def _is_there(self, name: str, channel: Channel) -> None:
        self._there.add(name)
        channel.close()

    def _answered(self, _channel: Channel | None, reason: Exception) -> None:
        self._waiting -= 1
        if isinstance(reason, exceptions.ChannelClosedByBroker):
            if reason.reply_code != 404:
                self._trouble = f"the broker does not say which of the queues named are there: {reason.reply_text}"
        elif not isinstance(reason, exceptions.ChannelClosedByClient):
            self._cut = True
        if not self._waiting:
            self._over(None if self._trouble or self._cut else self._there, self._trouble)
