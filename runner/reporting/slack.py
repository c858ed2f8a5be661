"""Notices in Slack: which experiments start, and how they end. Nothing waits for Slack, and what it misses is counted.

The hook: https://docs.slack.dev/messaging/sending-messages-using-incoming-webhooks. Its URL is a secret, which is in no
sentence and no error of this module.
"""

from __future__ import annotations

import logging
import math
import platform
import re
import time
from collections import deque
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from threading import Condition, Thread
from typing import Any

from runner.errors import RunnerError, Unavailable
from runner.events import Finished
from runner.message.request import Request
from runner.queues.settle import Decision
from runner.retry import Patience

log = logging.getLogger(__name__)

# Slack takes about one post a second from a hook. In seconds.
_PACE = 1.0
# Notices that wait; together in one post; and characters of one.
_WAITING, _BATCH, _LONGEST = 1000, 25, 500
# How long a post is tried again, and how long Slack may take to connect and to answer. In seconds.
_PATIENCE = Patience(total=120, first=1.0)
_ANSWER = (5.0, 10.0)
# The longest that Slack may have us wait, and how long the last notices may take. In seconds.
_LONGEST_WAIT, _CLOSING = 120.0, 3.0
_DESTINATION = re.compile(r"[#@]?[\w.-]{1,80}")
_SIGNS = {"ok": "\N{WHITE HEAVY CHECK MARK}", "stopped": "\N{BLACK SQUARE FOR STOP}", "": "\N{WARNING SIGN}"}
_FAILED, _STARTED = "\N{CROSS MARK}", "\N{BLACK RIGHT-POINTING TRIANGLE}"


class Refused(RunnerError):
    """Slack has understood, and will not do it."""


class _Busy(Unavailable):
    """Slack wants us to come again, after so many seconds."""

    def __init__(self, sentence: str, wait: float = 0.0) -> None:
        super().__init__(sentence)
        self.wait = wait


@dataclass(frozen=True)
class _Notice:
    room: str
    text: str


@dataclass(frozen=True)
class Answer:
    """What Slack says: a status, its word for what is wrong ("" for none that we know), seconds to wait."""

    status: int
    word: str
    wait: float


def post(hook: str, payload: Mapping[str, Any]) -> Answer:
    """Post once. Raises Unavailable when there is no answer."""
    import requests  # noqa: PLC0415 -- only who uses Slack pays for it

    try:
        with requests.post(hook, json=payload, timeout=_ANSWER, allow_redirects=False, stream=True) as answer:
            word = next(answer.iter_content(200), b"").decode(errors="replace").strip()
            wait = answer.headers.get("retry-after", "")
            return Answer(
                answer.status_code,
                word if re.fullmatch("[a-z_]{1,60}", word) else "",
                min(float(wait), _LONGEST_WAIT) if wait.isdecimal() else 0.0,
            )
    except (requests.RequestException, OSError) as error:  # whose words have the URL in them
        raise Unavailable(f"Slack cannot be reached ({type(error).__name__})") from None


class Slack:
    """Posts notices to one hook in a thread of its own. ``room`` is for messages that name none, "" for the hook's own.

    ``clock`` gives monotonic seconds.
    """

    def __init__(self, hook: str, room: str = "", *, clock: Callable[[], float] = time.monotonic) -> None:
        self._hook, self._room, self._clock = hook, room, clock
        self._changed = Condition()
        self._waiting: deque[_Notice] = deque()
        self._dropped = 0
        self._closing = math.inf
        self._said = ""
        self._thread: Thread | None = None

    def notices(self, queue: str, wanted: Request) -> Notices:
        """Return the notices about an experiment from a queue."""
        room = destination_of(wanted.document) or self._room
        return Notices(queue, wanted.key, lambda text: self._put(_Notice(room, text)) if self._hook else None)

    def close(self) -> None:
        """Post what goes in a moment, and forget the rest."""
        with self._changed:
            self._closing = self._clock() + _CLOSING
            self._changed.notify_all()
        if self._thread:
            self._thread.join(_CLOSING)
        if lost := self._dropped + len(self._waiting):
            log.warning("%d notices for Slack were lost", lost)

    def _put(self, notice: _Notice) -> None:
        with self._changed:
            if len(self._waiting) >= _WAITING:
                self._dropped += 1
                return
            self._waiting.append(notice)
            self._changed.notify_all()
        if self._thread is None:
            self._thread = Thread(target=self._run, name="slack", daemon=True)
            self._thread.start()

    # In the thread

    def _run(self) -> None:
        while batch := self._next():
            try:
                self._deliver(batch)
                self._said = ""
            except RunnerError as error:
                with self._changed:
                    self._dropped += len(batch)
                if self._said != str(error):
                    log.warning("notices are lost: %s", error)
                self._said = str(error)
            self._rest(_PACE)

    def _next(self) -> list[_Notice]:
        """Wait for notices, and return the next ones that go to one room; [] for the end."""
        with self._changed:
            while not self._waiting and self._left() == math.inf:
                self._changed.wait()
            if not self._left():
                return []
            room = self._waiting[0].room if self._waiting else ""
            batch = [notice for notice in self._waiting if notice.room == room][:_BATCH]
            for notice in batch:
                self._waiting.remove(notice)
            return batch

    def _deliver(self, batch: list[_Notice]) -> None:
        """Post some notices to their room, in a few tries. Raises Refused, and Unavailable in the end."""
        with self._changed:
            dropped = self._dropped
        lines = [notice.text for notice in batch] + ([f"{dropped} earlier notices were lost"] if dropped else [])
        payload = {"text": "\n".join(lines), **({"channel": batch[0].room} if batch[0].room else {})}
        end = self._clock() + _PATIENCE.total
        for delay in _PATIENCE.delays():
            try:
                self._post(payload)
                break
            except _Busy as busy:
                wait = max(delay, busy.wait)
                if self._clock() + wait >= end or self._left() < wait:
                    raise
            self._rest(wait)
        with self._changed:
            self._dropped -= dropped

    def _post(self, payload: Mapping[str, Any]) -> None:
        """Post once. Raises _Busy when another try may succeed, else Refused."""
        try:
            answer = post(self._hook, payload)
        except Unavailable as error:
            raise _Busy(str(error)) from None
        if answer.status == 200:
            return
        what = f"{answer.status} {answer.word}".strip()
        if answer.status in (408, 429) or answer.status >= 500:
            raise _Busy(f"Slack takes no notices just now: it answers {what}", answer.wait)
        raise Refused(
            f"Slack refuses them: it answers {what}: check --slack-hook, and the room {payload.get('channel', '')!r}"
        )

    def _left(self) -> float:
        return max(0.0, self._closing - self._clock())

    def _rest(self, seconds: float) -> None:
        end = self._clock() + seconds
        with self._changed:
            while self._closing == math.inf and (left := end - self._clock()) > 0:
                self._changed.wait(left)


@dataclass(frozen=True)
class Notices:
    """The notices about one experiment."""

    queue: str
    key: str
    send: Callable[[str], object]

    def begin(self, attempt: int) -> None:
        """An attempt begins."""
        self._tell(_STARTED, f"experiment {self.key!r}, attempt {attempt}, started", "")

    def end(self, finished: Finished, decision: Decision, took: str = "") -> None:
        """It is over, and what becomes of its message; ``took`` is how long it was."""
        if finished.outcome in ("elsewhere", "repeated"):
            return
        sign = _SIGNS.get(finished.verdict, _SIGNS[""] if finished.outcome != "failed" else _FAILED)
        told = [finished.verdict, took, decision.value if finished.outcome != "completed" else ""]
        self._tell(sign, finished.sentence, "; ".join(filter(None, told)))

    def _tell(self, sign: str, sentence: str, more: str) -> None:
        where = f"{self.queue} on {platform.node()}"
        text = f"{sentence[:_LONGEST]} ({'; '.join(filter(None, (more, where)))})"
        self.send(f"{sign} {_escaped(text)}")


SILENT = Notices("", "", lambda _text: None)
"""For nobody."""


def destination_of(document: Mapping[str, Any]) -> str:
    """Return where a message wants its notices, ``config.runner.slack_destination``; "" where that is nowhere."""
    found: Any = document
    for member in ("config", "runner", "slack_destination"):
        found = found.get(member) if isinstance(found, Mapping) else None
    return found if isinstance(found, str) and _DESTINATION.fullmatch(found) else ""


def _escaped(text: str) -> str:
    """Slack makes links and calls people by what stands in angle brackets."""
    line = "".join(each if each.isprintable() else " " for each in text)
    return line.replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")
