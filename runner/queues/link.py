"""A connection to RabbitMQ that is a guest in the process's loop, and is made again whenever it is lost."""

from __future__ import annotations

from collections.abc import Callable

import pika
from pika.adapters.utils.selector_ioloop_adapter import SelectorIOServicesAdapter

from runner.loop import Loop
from runner.retry import Patience

# Nobody but an operator can end this runner's patience with its broker.
_RECONNECTION = Patience(total=float("inf"))


class Link:
    """Tries until it is closed, later each time.

    ``opened`` is called whenever there is a connection, ``failed`` when it is lost, closed or could not be made.
    """

    def __init__(
        self,
        loop: Loop,
        parameters: pika.URLParameters,
        *,
        opened: Callable[[], object],
        failed: Callable[[Exception], object],
    ) -> None:
        self._loop, self._parameters, self._opened, self._failed = loop, parameters, opened, failed
        self._delays = _RECONNECTION.delays()
        self._closing = False
        self._connect()

    @property
    def connection(self) -> pika.SelectConnection:
        """The connection of the moment."""
        return self._connection

    @property
    def is_open(self) -> bool:
        """True while it can be used."""
        return bool(self._connection.is_open)

    @property
    def is_closed(self) -> bool:
        """True when nothing is left of it."""
        return bool(self._connection.is_closed)

    def close(self) -> None:
        """Begin to close; the loop has to be served until it is closed. May be called twice."""
        self._closing = True
        if self._connection.is_open:
            self._connection.close()

    def _connect(self) -> None:
        if not self._closing:
            self._connection = pika.SelectConnection(
                self._parameters,
                on_open_callback=self._is_there,
                on_open_error_callback=self._is_gone,
                on_close_callback=self._is_gone,
                custom_ioloop=SelectorIOServicesAdapter(self._loop),
            )

    def _is_there(self, connection: pika.SelectConnection) -> None:
        if self._closing:
            connection.close()  # not sooner: pika 1.4 fails over an opening that is given up
            return
        self._delays = _RECONNECTION.delays()
        self._opened()

    def _is_gone(self, _connection: pika.SelectConnection, error: Exception) -> None:
        self._failed(error)
        if not self._closing:
            self._loop.call_later(next(self._delays), self._connect)
