"""The runner's one loop: take what fits, start attempts, settle messages. It never does slow work itself."""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from time import time

from runner.errors import MachineError, RequestError
from runner.events import Finished
from runner.lifecycle import Limits, Signals
from runner.loop import Loop
from runner.machine.allocate import Allocator
from runner.machine.disk import Claim, Disk
from runner.machine.gpu_watch import GpuWatch
from runner.message.envelope import Envelopes
from runner.message.request import Request
from runner.monitoring import metrics
from runner.monitoring.board import Board
from runner.monitoring.journal import Journal
from runner.options.settings import Settings
from runner.queues.base import Delivery, QueueServer
from runner.queues.settle import Decision, Ledger, decide, settle
from runner.reporting.reports import Reports
from runner.reporting.slack import Slack
from runner.secrets.masking import Secrets
from runner.supervisor import intake
from runner.supervisor.admission import Queues
from runner.supervisor.intake import Plan, Received
from runner.supervisor.orders import Orders
from runner.supervisor.overview import Overview
from runner.supervisor.reasons import Reasons
from runner.supervisor.replays import Replays
from runner.supervisor.running import Running
from runner.supervisor.spare import Spare
from runner.supervisor.stopping import Stopping
from runner.supervisor.watching import Watching
from runner.units import format_duration

log = logging.getLogger(__name__)

# The longest wait of one tick, in seconds; how late a message in a directory is noticed at worst.
_TICK = 0.25


@dataclass(frozen=True)
class Parts:
    """What a supervisor works with. ``suspended`` tells whether no work is to be taken just now.

    ``own`` returns the runner's own secrets, as they are now. ``clock`` gives monotonic seconds.
    """

    servers: Sequence[QueueServer]
    loop: Loop
    signals: Signals
    allocator: Allocator
    disk: Disk
    gpus: GpuWatch
    reports: Reports
    reasons: Reasons
    slack: Slack
    envelopes: Envelopes
    replays: Replays
    journal: Journal
    board: Board
    suspended: Callable[[], bool]
    own: Callable[[], Secrets]
    clock: Callable[[], float]


class Supervisor:
    """Runs experiments until it is told to stop or a limit is reached."""

    def __init__(self, settings: Settings, parts: Parts) -> None:
        self._settings, self._parts = settings, parts
        self._loop, self._signals, self._clock = parts.loop, parts.signals, parts.clock
        self._servers, self._allocator, self._disk = parts.servers, parts.allocator, parts.disk
        self._queues = Queues(parts.servers, parts.allocator, parts.clock, parts.reasons)
        self._ledger = Ledger()
        self._running: list[Running] = []
        self._spare = Spare(parts.loop, settings.env_allow, parts.clock)
        self._orders = Orders(settings)
        self._resting = False
        self._watching = Watching(self._running, parts.gpus, parts.clock)
        self._stopping = Stopping(parts.signals, settings.grace_period, parts.clock)
        self._limits = Limits(
            tasks=settings.limit_tasks,
            idle=settings.limit_idle_duration,
            interval=settings.limit_interval,
            now=self._clock(),
        )
        self._journal = parts.journal
        self._overview = Overview(
            queues=self._queues,
            allocator=self._allocator,
            disk=self._disk,
            reasons=parts.reasons,
            journal=parts.journal,
            home=settings.home,
        )
        parts.board.show(lambda: self._overview.snapshot(self._running, idle=self._idle))
        self._loop.add_handler(self._signals.fd, lambda _fd, _events: self._signals.drain(), self._loop.READ)

    def run(self, over: Callable[[], bool] | None = None) -> None:
        """Work until the end, or until ``over`` says so; everything that is held is settled or given back by then."""
        try:
            while not (self._over() or (over and over())):
                more = self.tick()
                self._loop.run_once(0 if more else _TICK)
        finally:
            for running in self._running:
                running.child.kill()
            self._spare.close()
            self._parts.reports.close()
            self._parts.slack.close()
            for server in self._servers:
                server.close()
            self._parts.reasons.close()

    def tick(self) -> bool:
        """Do what there is to do, without waiting for anything; return whether there is more of it."""
        self._parts.board.beat()
        self._stopping.heed(self._running)
        self._reap()
        self._watching.heed_deletions()
        self._watching.heed_gpus()
        for running in self._running:
            running.keep_alive()
        self._parts.reports.pump()
        self._disk.tend(self._claims)
        more = False
        if self._taking:
            self._resting = False
            self._spare.prepare()
            more = self._take_work()
        elif not self._resting:
            self._queues.rest_all()
            self._resting = True
        self._note()
        return more

    def _over(self) -> bool:
        if self._stopping.begun:
            return not self._running
        reason = self._limits.reached(running=len(self._running), now=self._clock())
        if reason:
            log.info("ending: %s", reason)
        return bool(reason)

    @property
    def _claims(self) -> list[Claim]:
        return [running.claim for running in self._running]

    @property
    def _taking(self) -> bool:
        return not self._stopping.begun and not self._limits.enough(self._clock()) and not self._parts.suspended()

    @property
    def _idle(self) -> str:
        """Why no work is taken at all, "" if it is."""
        if self._stopping.begun:
            return "stopping"
        return self._limits.enough(self._clock()) or ("suspended by Kubernetes" if self._parts.suspended() else "")

    def _note(self) -> None:
        """Keep the file for ``explain`` up to date."""
        others = sorted(name for server in self._servers for name in server.others())
        busy = [str(running) for running in self._running]
        self._parts.reasons.note(idle=self._idle, others=others, running=busy, free=self._allocator.left())
        searches = [search for server in self._servers for search in server.refreshed()]
        if self._taking and searches and not any(search.trouble for search in searches):
            self._parts.reasons.searched(others)
        self._parts.reasons.save()

    # Ends

    def _reap(self) -> None:
        for running in list(self._running):
            status = running.child.ended()
            if status is not None:
                self._running.remove(running)
                running.child.close()
                self._allocator.release(running.allocation)
                if running.died(status):
                    running.clear_away(self._settings.home, keep=self._settings.debug)
                self._settle(running, running.outcome(status))

    def _settle(self, running: Running, finished: Finished) -> None:
        """Decide a message's fate, once its attempt is over."""
        decision = decide(finished)
        identity = _identity(running.queue, running.request)
        if finished.outcome == "failed":
            self._ledger.failed(identity)
        if decision is not Decision.GIVE_BACK:
            self._ledger.over(identity, unacknowledged=running.lost)
        if not running.leased:
            self._limits.started -= 1  # it was over or runs elsewhere: that was no attempt
        self._queues.ended(running.queue, running.need, well=decision is Decision.ACK)
        if finished.outcome in ("misfit", "unavailable", "elsewhere"):
            self._queues.pause(running.queue, finished.sentence, logged=True)
        took = format_duration(round(self._clock() - running.since, 1))
        level = logging.WARNING if finished.outcome in ("failed", "misfit", "unavailable") else logging.INFO
        word = f"{finished.verdict}; " if finished.verdict else ""
        running.log.log(level, "%s: %s (%s%s; %s)", running.queue, finished.sentence, word, took, decision.value)
        running.stream.end(finished, decision)
        running.notices.end(finished, decision, took)
        self._journal_end(running, finished, decision)
        running.settle(decision)
        if finished.outcome == "completed" and running.received.name:
            self._parts.replays.add(running.received.name, running.request.end_of_life)

    def _journal_end(self, running: Running, finished: Finished, decision: Decision) -> None:
        running.enter("")
        if running.leased:
            labels = (running.server.kind, running.queue, running.project, running.request.key)
            self._journal.counts.add(metrics.COMPLETED, *labels)
        self._journal.ended(
            running.queue,
            running.request.key,
            finished,
            decision.value,
            attempt=running.number,
            seconds=self._clock() - running.since,
        )

    # Taking work

    def _take_work(self) -> bool:
        """Ask every queue in turn for one message, and again while there are some; true when there are more by then."""
        end = self._clock() + _TICK
        while any(self._take_from(server, queue) for server, queue in self._queues.rota()):
            if self._clock() >= end:
                return True  # signals and the broker's heartbeat come first
        return False

    def _take_from(self, server: QueueServer, queue: str) -> bool:
        # A message that the broker took back while its experiment runs here is wanted, however full the machine is.
        adopting = any(running.lost and running.queue == queue for running in self._running)
        if not (self._taking and self._queues.may_ask(queue, adopting=adopting)):
            server.rest(queue)
            self._queues.rested(queue)
            self._journal.counts.add(metrics.IGNORED, server.kind, queue)
            return False
        self._parts.reports.scanning(server, queue)
        self._journal.counts.add(metrics.CHECKED, server.kind, queue)
        delivery = server.take(queue)
        self._queues.asked(queue, took=delivery is not None)
        if delivery:
            self._admit(server, delivery)
        return delivery is not None

    def _admit(self, server: QueueServer, delivery: Delivery) -> None:
        """Start an attempt at a message, or decide at once what else becomes of it (protocol section 8)."""
        try:
            received = intake.read(delivery, self._parts.envelopes, self._settings)
            if self._known(received, server, delivery):
                return
            plan = intake.plan(received.request, delivery.queue, self._allocator, self._settings)
            if self._queues.fits(delivery.queue, plan.need):
                self._disk.check(plan.need.hdd, self._claims)
                self._start(received, plan, server, delivery)
            else:
                self._queues.hold(delivery.queue, plan.need)
                delivery.give_back()
        except RequestError as error:
            log.error("%s: a message is refused: %s", delivery.queue, error, extra={"queue": delivery.queue})
            self._journal.refused(delivery.queue, str(error), Decision.REFUSE.value)
            delivery.refuse()
        except MachineError as error:
            self._queues.pause(delivery.queue, error)
            delivery.give_back()

    def _known(self, received: Received, server: QueueServer, delivery: Delivery) -> bool:
        """Settle what needs no attempt: dead of age, or come again while its attempt runs, or after it was over.

        Raises RequestError for somebody's copy of a signed message that was completed.
        """
        wanted = received.request
        for running in self._running:
            # Without a time of submission another experiment may have the same identity.
            same = _identity(running.queue, running.request) == _identity(delivery.queue, wanted)
            if same and (running.lost or wanted.time_added is not None):
                running.adopt(delivery)
                return True
        if wanted.expired(time()):
            sentence = f"experiment {wanted.key!r} is past its lifetime"
            finished = Finished("failed", sentence, last=True, verdict="lifetime")
            self._parts.reports.stream(server, delivery.queue, wanted).end(finished, Decision.ACK)
            self._parts.slack.notices(delivery.queue, wanted).end(finished, Decision.ACK)
        elif self._ledger.forgive(_identity(delivery.queue, wanted)):
            finished = Finished("repeated", f"experiment {wanted.key!r} came again after it was over")
        elif received.name and not delivery.redelivered and self._parts.replays.seen(received.name):
            raise RequestError(
                f"the signed message of experiment {wanted.key!r} is a copy: it was completed here before"
            )
        else:
            return False
        fields = {"experiment": wanted.key, "queue": delivery.queue}
        log.warning("%s: %s (%s)", delivery.queue, finished.sentence, Decision.ACK.value, extra=fields)
        self._journal.ended(delivery.queue, wanted.key, finished, Decision.ACK.value, attempt=0, seconds=0.0)
        settle(delivery, Decision.ACK)
        return True

    def _start(self, received: Received, plan: Plan, server: QueueServer, delivery: Delivery) -> None:
        wanted = received.request
        failures = self._ledger.failures(_identity(delivery.queue, wanted))
        child = self._spare.take()
        stream = self._parts.reports.stream(server, delivery.queue, wanted)
        allocation = self._allocator.reserve(plan.need)
        running = Running(
            received, allocation, server, [delivery], child, stream, self._clock(), 1 + failures, self._journal
        )
        running.notices = self._parts.slack.notices(delivery.queue, wanted)
        self._running.append(running)
        self._queues.started(delivery.queue, plan.need)
        self._limits.started += 1
        order = self._orders.write(
            received,
            plan,
            allocation,
            delivery,
            failures=failures,
            reported=stream.heard,
            own=self._parts.own(),
            cache_size=self._disk.allowance("cache", self._settings.cache_size, self._claims),
        )
        child.begin(order)
        if allocation.gpus:
            log.info("%s gets %s", running, self._allocator.gpus.named(allocation.gpus))


def _identity(queue: str, wanted: Request) -> str:
    """Tell experiments apart: who may submit to another queue can give his the same names."""
    return f"{queue} {wanted.identity}"
