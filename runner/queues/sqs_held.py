"""Messages of SQS that are held: hidden from others for half a minute at a time, for as long as they are worked on."""

from __future__ import annotations

import json
import logging
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from queue import SimpleQueue
from threading import Condition, Lock, Thread
from typing import Any

from runner import retry
from runner.errors import Unavailable
from runner.queues.sqs_account import POLL, Place, Refused
from runner.queues.sqs_sending import grouped
from runner.retry import Patience

log = logging.getLogger(__name__)

# How soon an extension that failed is tried again, in seconds.
_AGAIN = 2.0
# How long the settling of a message is tried. By then SQS has given it back itself. In seconds.
_SETTLING = Patience(total=20.0)
# So many calls are made at once.
_HANDS = 4


@dataclass(frozen=True)
class Timing:
    """Seconds: how long a message is hidden at a time, how long it may be held in all, how long a poll lasts.

    The second is SQS's own limit: https://docs.aws.amazon.com/AWSSimpleQueueService/latest/SQSDeveloperGuide/sqs-visibility-timeout.html
    """

    visibility: float = 30.0
    ceiling: float = 12 * 3600.0
    poll: int = POLL


#: As SQS has it.
TIMING = Timing()


class Hands:
    """Threads that do what would hold up the loop: a few for each account's extensions, and a few for its settlements.

    An account that does not answer costs the messages of no other, nor does what is tried for long cost what is urgent.
    """

    def __init__(self) -> None:
        self._lanes: dict[tuple[str, str], _Lane] = {}
        self._busy = 0
        self._changed = Condition()

    def do(self, account: str, kind: str, task: Callable[[], object]) -> None:
        """Have something done soon."""
        with self._changed:
            self._busy += 1
            lane = self._lanes.setdefault((account, kind), _Lane())
            if lane.missing:
                lane.missing -= 1
                Thread(target=self._work, args=(lane,), name=f"sqs-{kind}", daemon=True).start()
        lane.tasks.put(task)

    def finish(self, seconds: float) -> None:
        """Wait until all is done, for so long at most."""
        with self._changed:
            self._changed.wait_for(lambda: not self._busy, seconds)

    def _work(self, lane: _Lane) -> None:
        while True:
            try:
                lane.tasks.get()()
            except Exception:
                log.exception("a call of SQS has failed in a way that nobody thought of")
            finally:
                with self._changed:
                    self._busy -= 1
                    self._changed.notify_all()


@dataclass
class _Lane:
    """What waits for some threads, and how many of them there are not yet."""

    tasks: SimpleQueue[Callable[[], object]] = field(default_factory=SimpleQueue)
    missing: int = _HANDS


class SQSDelivery:
    """A message that is hidden from others until a time, which is put off again and again.

    ``received`` is when it was asked for, in monotonic seconds: SQS counts from a moment later.
    """

    def __init__(
        self, queue: str, place: Place, hands: Hands, message: dict[str, Any], received: float, timing: Timing
    ) -> None:
        self.queue, self.body = queue, str(message["Body"]).encode(errors="replace")
        attributes = message.get("Attributes") or {}
        count = str(attributes.get("ApproximateReceiveCount", ""))
        self.redeliveries: int | None = int(count) - 1 if count.isdigit() else None
        self.redelivered = bool(self.redeliveries)
        self._place, self._hands, self._message = place, hands, message
        self._timing = timing
        self._ceiling = received + timing.ceiling
        self._until = received + timing.visibility
        self._due = received + timing.visibility / 2
        self._settled = self._extending = False
        # Calls about one message are made one after the other.
        self._turn = Lock()

    @property
    def settled(self) -> bool:
        """True when its fate is decided, though SQS may not have been told so yet."""
        return self._settled

    @property
    def lost(self) -> bool:
        """True when the message is not hidden any more."""
        return not self._settled and time.monotonic() >= self._until

    @property
    def window(self) -> float:
        """How long it stays hidden, unless that is put off."""
        return self._until - time.monotonic()

    def keep_alive(self) -> None:
        """Have the message hidden for longer, in good time."""
        if not (self._settled or self._extending or self.lost) and time.monotonic() >= self._due:
            self._extending = True
            self._hands.do(self._place.account.name, "extend", self._extend)

    def ack(self) -> None:
        """Delete the message."""
        self._settle(self._delete)

    def give_back(self) -> None:
        """Show the message to everybody at once."""
        self._settle(self._show)

    def refuse(self) -> None:
        """Move the message to the dead-letter queue that its queue's redrive policy names, if it names one."""
        self._settle(self._bury)

    # In the hands' threads

    def _settle(self, action: Callable[[], object]) -> None:
        if not (self._settled or self.lost):
            self._settled = True
            self._hands.do(self._place.account.name, "settle", lambda: self._try(action))

    def _try(self, action: Callable[[], object]) -> None:
        with self._turn:
            try:
                retry.call(action, _SETTLING)
            except (Refused, Unavailable) as error:
                log.warning("queue %s: a message comes again, as it could not be settled: %s", self.queue, error)

    def _extend(self) -> None:
        with self._turn:
            now = time.monotonic()
            seconds = int(min(self._timing.visibility, self._ceiling - now))
            try:
                if not self._settled and seconds > 0:
                    self._change(seconds)
                    self._until = now + seconds
                    self._due = now + seconds / 2
            except Refused as refusal:
                self._until = 0.0
                log.warning("queue %s: a message is not this runner's any more: %s", self.queue, refusal)
            except Unavailable as error:
                self._due = now + _AGAIN
                log.warning("queue %s: a message is hidden for %.0f s more: %s", self.queue, self._until - now, error)
            if seconds < int(self._timing.visibility):
                self._due = float("inf")
                log.warning(
                    "queue %s: SQS takes back a message that was held for as long as it allows: the experiment goes "
                    "on, and the message is taken again",
                    self.queue,
                )
            self._extending = False

    def _change(self, seconds: int) -> None:
        self._call("change_message_visibility", VisibilityTimeout=seconds)

    def _delete(self) -> None:
        self._call("delete_message")

    def _show(self) -> None:
        self._change(0)

    def _bury(self) -> None:
        try:
            grave = self._grave()
            if grave:
                self._place.account.call("send_message", **self._copy(grave))
        except Refused as refusal:
            # Until it is shown by itself: at once it would come again at once.
            log.error("queue %s: a message cannot be moved to the dead-letter queue: %s", self.queue, refusal)
            return
        self._delete()

    def _grave(self) -> str | None:
        """Return the URL of the dead-letter queue."""
        answer = self._place.account.call(
            "get_queue_attributes", QueueUrl=self._place.url, AttributeNames=["RedrivePolicy"]
        )
        policy = (answer.get("Attributes") or {}).get("RedrivePolicy")
        if not policy:
            return None
        owner, name = json.loads(policy)["deadLetterTargetArn"].split(":")[-2:]
        url = self._place.account.url(name, QueueOwnerAWSAccountId=owner)
        if url is None:
            raise Refused("NonExistentQueue", f"there is no queue {name}")
        return url

    def _copy(self, url: str) -> dict[str, Any]:
        copy = {"QueueUrl": url, "MessageBody": self._message["Body"]}
        if self._message.get("MessageAttributes"):
            copy["MessageAttributes"] = self._message["MessageAttributes"]
        group = (self._message.get("Attributes") or {}).get("MessageGroupId", self.queue)
        return copy | grouped(url, self._message["MessageId"], group)

    def _call(self, operation: str, **parameters: Any) -> None:
        """Raises Refused when the message is not ours, or not there any more, else Unavailable."""
        handle = self._message["ReceiptHandle"]
        try:
            self._place.account.call(operation, QueueUrl=self._place.url, ReceiptHandle=handle, **parameters)
        except Refused as refusal:
            if refusal.about_us:
                raise Unavailable(str(refusal)) from refusal
            raise
