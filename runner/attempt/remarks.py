"""What the runner says in an experiment's log beside its output: how far things are, and events that its message wants.

``config.verbose`` of a message is the level from which on events of the runner's log stand in the experiment's, too.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from functools import partial

from runner.attempt.console import Console
from runner.errors import MachineError
from runner.events import Advanced
from runner.log import LEVELS
from runner.loop import Loop


class Remarks:
    """The remarks on one attempt; they go nowhere while there is no log.

    ``tell`` takes events for the supervisor. ``looking``: somebody sees bars, so lines are for the log only.
    """

    def __init__(self, loop: Loop, tell: Callable[[Advanced], object], verbose: str | None, *, looking: bool) -> None:
        self._loop, self._tell, self._looking = loop, tell, looking
        self._level = LEVELS.get((verbose or "").upper())
        self._console: Console | None = None

    @contextmanager
    def into(self, console: Console) -> Iterator[None]:
        """Write them there, for a while."""
        self._console = console
        handler = _Handler(self._level or logging.CRITICAL, self._heard)
        logging.getLogger("runner").addHandler(handler)
        try:
            yield
        finally:
            logging.getLogger("runner").removeHandler(handler)
            self._console = None

    def advanced(self, sentence: str) -> None:
        """Something that takes long goes on. To be called in the loop."""
        if not self._looking:
            self._tell(Advanced(sentence))
        self._say(sentence)

    def detail(self, sentence: str) -> None:
        """Say what only who debugs wants to know. To be called in the loop."""
        if self._level == logging.DEBUG:
            self._say(sentence)

    def _heard(self, record: logging.LogRecord) -> None:
        """In whatever thread."""
        if self._level is not None:
            self._loop.add_callback(partial(self._say, record.getMessage()))

    def _say(self, sentence: str) -> None:
        with suppress(MachineError):  # a full disk: what is written next will say so
            if self._console:
                self._console.write(f"studio-runner: {sentence}", shown=not self._looking)


class _Handler(logging.Handler):
    def __init__(self, level: int, heard: Callable[[logging.LogRecord], None]) -> None:
        super().__init__(level)
        self._heard = heard

    def emit(self, record: logging.LogRecord) -> None:
        self._heard(record)
