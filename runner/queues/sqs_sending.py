"""Sending to SQS from a thread: ten messages a call, in order, again until they are there."""

from __future__ import annotations

import logging
import time
import uuid
from collections import deque
from itertools import takewhile
from threading import Condition, Thread
from typing import Any, NamedTuple

from runner.errors import ConfigError, Unavailable
from runner.queues.sqs_account import Account, Options, Refused, sources
from runner.retry import Patience

log = logging.getLogger(__name__)

# So many messages may wait.
_WINDOW = 256
# The most of one call: messages, and bytes. SQS allows a little more.
_BATCH, _BYTES = 10, 250_000
_PATIENCE = Patience(total=float("inf"))


class _Message(NamedTuple):
    account: Account
    url: str
    body: bytes
    id: str


class Sender:
    """What waits to be sent. A message that SQS refuses, for its size or as its queue is gone, is dropped."""

    def __init__(self) -> None:
        self._waiting: deque[_Message] = deque()
        self._changed = Condition()
        self._thread: Thread | None = None

    def send(self, account: Account, url: str, body: bytes) -> bool:
        """Send a message soon; False when too many wait."""
        with self._changed:
            if len(self._waiting) >= _WINDOW:
                return False
            self._waiting.append(_Message(account, url, body, uuid.uuid4().hex))
            self._changed.notify_all()
        if self._thread is None:
            self._thread = Thread(target=self._work, name="sqs-sender", daemon=True)
            self._thread.start()
        return True

    def finish(self, seconds: float) -> None:
        """Wait until all is sent, for so long at most."""
        with self._changed:
            self._changed.wait_for(lambda: not self._waiting, seconds)

    def _work(self) -> None:
        delays = _PATIENCE.delays()
        while True:
            with self._changed:
                self._changed.wait_for(lambda: self._waiting)
                batch = _batch(self._waiting)
            try:
                done = _send(batch)
            except Unavailable as error:
                log.debug("%s", error)
                time.sleep(next(delays))
                continue
            delays = _PATIENCE.delays()
            with self._changed:
                # What failed is the first again, as it was.
                left = [message for message in batch if message.id not in done]
                for _ in batch:
                    self._waiting.popleft()
                self._waiting.extendleft(reversed(left))
                self._changed.notify_all()


def _batch(waiting: deque[_Message]) -> list[_Message]:
    """Return the first messages, as far as they are for one queue and fit in one call."""
    batch: list[_Message] = []
    size = 0
    for message in takewhile(lambda each: each.url == waiting[0].url, waiting):
        size += len(message.body)
        if len(batch) == _BATCH or (batch and size > _BYTES):
            break
        batch.append(message)
    return batch


def _send(batch: list[_Message]) -> set[str]:
    """Send some messages; return which of them need not be sent again. Raises Unavailable."""
    first = batch[0]
    try:
        answer = first.account.call(
            "send_message_batch", QueueUrl=first.url, Entries=[_entry(message) for message in batch]
        )
    except Refused as refusal:
        log.debug("%d messages are dropped: %s", len(batch), refusal)
        return {message.id for message in batch}
    failed = {each["Id"]: each for each in answer.get("Failed") or []}
    again = {name for name, each in failed.items() if not each.get("SenderFault")}
    if len(again) == len(batch):
        raise Unavailable(f"SQS takes no messages for {first.url} just now")
    return {message.id for message in batch} - again


def _entry(message: _Message) -> dict[str, Any]:
    entry = {"Id": message.id, "MessageBody": message.body.decode()}
    return entry | grouped(message.url, message.id)


def grouped(url: str, identity: str, group: str = "studioml") -> dict[str, str]:
    """Return what a FIFO queue wants to know of a message beside its body; nothing for any other queue."""
    return {"MessageGroupId": group, "MessageDeduplicationId": identity} if url.endswith(".fifo") else {}


def publish(options: Options, queue: str, body: bytes) -> None:
    """Send one message to a queue that is there. Blocks. Raises ConfigError and Unavailable."""
    for source in sources(options):
        account = Account(source, options)
        try:
            if url := account.url(queue):
                text = body.decode()
                account.call("send_message", QueueUrl=url, MessageBody=text, **grouped(url, uuid.uuid4().hex))
                return
        except Refused as refusal:
            raise ConfigError(str(refusal)) from refusal
    raise ConfigError(f"there is no SQS queue {queue!r}: make it first, for example by aws sqs create-queue")
