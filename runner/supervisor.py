"""The runner's one loop: take what fits, start attempts, settle messages. It never does slow work itself."""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from threading import Thread
from time import time

from runner import request
from runner.admission import Queues
from runner.child import Child
from runner.errors import MachineError, RequestError
from runner.events import Checkpoint, Event, Finished, Options, Order, Phase
from runner.lifecycle import Limits, Signals
from runner.loop import Loop
from runner.machine.allocate import Allocator, Resources
from runner.place import Place, clear
from runner.queues.base import Delivery, QueueServer
from runner.request import Request
from runner.sandbox import interpreters
from runner.settings import Settings
from runner.settle import Decision, Ledger, decide
from runner.units import format_duration

log = logging.getLogger(__name__)

# The longest wait of one tick, in seconds; how late a message in a directory is noticed at worst.
_TICK = 0.25
# How long attempts may take to store their results after they were told to stop, before they are killed. In seconds.
_STOP_PATIENCE = 60.0
_HURRIED_PATIENCE = 10.0
# How long not to try again when the process of an attempt cannot be started. In seconds.
_SPARE_PAUSE = 10.0


@dataclass
class Running:
    """An attempt under way: whose message it is, what it holds, and since when (monotonic seconds)."""

    request: Request
    need: Resources
    delivery: Delivery
    child: Child
    since: float
    number: int

    def __str__(self) -> str:
        return f"{self.delivery.queue}: experiment {self.request.key!r}, attempt {self.number}"


class Supervisor:
    """Runs experiments until it is told to stop or a limit is reached.

    ``clock`` gives monotonic seconds.
    """

    def __init__(
        self,
        settings: Settings,
        servers: Sequence[QueueServer],
        *,
        loop: Loop,
        signals: Signals,
        allocator: Allocator,
        clock: Callable[[], float],
    ) -> None:
        self._settings, self._loop, self._signals, self._clock = settings, loop, signals, clock
        self._servers = servers
        self._allocator = allocator
        self._queues = Queues(servers, clock)
        self._ledger = Ledger()
        self._running: list[Running] = []
        self._spare: Child | None = None
        self._spare_after = 0.0
        self._stopping_since: float | None = None
        self._told_to_stop: float | None = None
        self._limits = Limits(
            tasks=settings.limit_tasks,
            idle=settings.limit_idle_duration,
            interval=settings.limit_interval,
            now=clock(),
        )
        loop.add_handler(signals.fd, lambda _fd, _events: signals.drain(), loop.READ)

    def run(self) -> None:
        """Work until the end; everything that is held is settled or given back by then."""
        try:
            while not self._over():
                more = self.tick()
                self._loop.run_once(0 if more else _TICK)
        finally:
            for running in self._running:
                running.child.kill()
            if self._spare:
                self._spare.close()
                self._spare.wait(5.0)
            for server in self._servers:
                server.close()

    def tick(self) -> bool:
        """Do what there is to do, without waiting for anything; return whether there is more of it."""
        self._heed_signals()
        self._reap()
        self._keep_alive()
        if self._taking:
            self._prepare_spare()
            return self._take_work()
        self._queues.rest_all()
        return False

    def _over(self) -> bool:
        if self._stopping_since is not None:
            return not self._running
        reason = self._limits.reached(running=len(self._running), now=self._clock())
        if reason:
            log.info("ending: %s", reason)
        return bool(reason)

    @property
    def _taking(self) -> bool:
        return self._stopping_since is None and not self._limits.no_more_work

    # Stopping

    def _heed_signals(self) -> None:
        """One signal: no more work, and the grace period for what runs. A second one: stop now. A third one: kill."""
        if not self._signals.stops:
            return
        now = self._clock()
        if self._stopping_since is None:
            self._stopping_since = now
            self._say_stopping()
        hurried = self._signals.stops > 1
        if self._told_to_stop is None and (hurried or now >= self._stopping_since + self._settings.grace_period):
            self._told_to_stop = now
            for running in self._running:
                log.info("%s is told to stop", running)
                running.child.stop()
        patience = _HURRIED_PATIENCE if hurried else _STOP_PATIENCE
        if self._told_to_stop is not None and (self._signals.stops > 2 or now >= self._told_to_stop + patience):
            for running in self._running:
                running.child.kill()

    def _say_stopping(self) -> None:
        if self._running:
            grace = format_duration(self._settings.grace_period)
            log.info(
                "stopping: %d experiments have %s to finish; a second signal stops them now", len(self._running), grace
            )
        else:
            log.info("stopping: nothing is running")

    # Watching

    def _reap(self) -> None:
        for running in list(self._running):
            status = running.child.ended()
            if status is not None:
                self._running.remove(running)
                running.child.close()
                self._allocator.release(running.need)
                self._settle(running, status)

    def _settle(self, running: Running, status: int) -> None:
        """Decide a message's fate, once its attempt is over."""
        finished = running.child.finished
        if finished is None or finished.status != status:
            self._clear_away(running)
            finished = Finished("unavailable", _broke_down(running, status))
        decision = decide(finished, attempt=running.number, allowed=self._settings.max_attempts)
        if finished.verdict == "failed":
            self._ledger.failed(running.request.identity)
        if decision is Decision.ACK:
            self._ledger.over(running.request.identity, unacknowledged=running.delivery.lost)
        self._queues.after(running.delivery.queue, finished.verdict, decision)
        took = format_duration(round(self._clock() - running.since, 1))
        level = logging.INFO if finished.verdict in ("completed", "stopped", "cancelled") else logging.WARNING
        log.log(level, "%s: %s (%s; %s)", running.delivery.queue, finished.sentence, took, decision.value)
        if decision is Decision.ACK:
            running.delivery.ack()
        else:
            running.delivery.give_back()

    def _clear_away(self, running: Running) -> None:
        """Remove what an attempt that died has left: processes now, files in a thread, for they may be many."""
        running.child.kill()
        if running.child.place:
            place = Place(self._settings.home, running.child.place)
            Thread(target=partial(clear, place, keep=self._settings.debug), daemon=True).start()

    def _keep_alive(self) -> None:
        for running in self._running:
            running.delivery.keep_alive()

    def _prepare_spare(self) -> None:
        """Keep one attempt's process ready, so that an order does not wait for imports."""
        if self._spare is not None and self._spare.ended() is not None:
            log.error("the process of an attempt ended before it had anything to do: see the lines above")
            self._spare.close()
            self._spare = None
            self._spare_after = self._clock() + _SPARE_PAUSE
        if self._spare is None and self._clock() >= self._spare_after:
            try:
                self._spare = Child(self._loop)
            except MachineError as error:
                log.error("%s", error)
                self._spare_after = self._clock() + _SPARE_PAUSE

    # Taking work

    def _take_work(self) -> bool:
        """Ask every queue in turn for one message, and again while there are some; true when there are more by then."""
        end = self._clock() + _TICK
        while sum(self._take_from(server, queue) for server, queue in self._queues.rota()):
            if self._clock() >= end:
                return True  # signals and the broker's heartbeat come first
        return False

    def _take_from(self, server: QueueServer, queue: str) -> bool:
        # A message that the broker took back while its experiment runs here is wanted, however full the machine is.
        wanted = self._allocator.free.cpus or any(
            running.delivery.lost and running.delivery.queue == queue for running in self._running
        )
        if not (wanted and self._taking and self._queues.may_ask(queue, self._allocator)):
            server.rest(queue)
            return False
        delivery = server.take(queue)
        if delivery:
            self._admit(delivery)
        return delivery is not None

    def _admit(self, delivery: Delivery) -> None:
        """Start an attempt at a message, or decide at once what else becomes of it (protocol section 8)."""
        try:
            wanted = request.parse(delivery.body, allow_env_secrets=self._settings.allow_env_secrets)
            self._check_acceptable(wanted)
            if self._known(wanted, delivery):
                return
            need = Resources(wanted.resources.cpus, wanted.resources.ram, wanted.resources.hdd)
            interpreter = self._fit(wanted, need)
            if self._allocator.fits(need):
                self._start(wanted, need, delivery, interpreter)
            else:
                self._queues.hold(delivery.queue, need)
                delivery.give_back()
        except RequestError as error:
            log.error("%s: a message is refused: %s", delivery.queue, error)
            delivery.refuse()
        except MachineError as error:
            log.warning("%s: a message is given back: %s", delivery.queue, error)
            self._queues.misfit(delivery.queue)
            delivery.give_back()

    def _check_acceptable(self, wanted: Request) -> None:
        if not self._settings.clear_text_messages:
            raise RequestError(f"experiment {wanted.key!r} is not encrypted, and --clear-text-messages is not set")

    def _known(self, wanted: Request, delivery: Delivery) -> bool:
        """Settle what needs no attempt: dead of age, or come again since the broker was lost while its attempt ran."""
        if wanted.expired(time()):
            log.warning("%s: experiment %r is past its lifetime, and is acknowledged", delivery.queue, wanted.key)
            delivery.ack()
            return True
        if self._ledger.forgive(wanted.identity):
            log.info("%s: experiment %r came again after it was over, and is acknowledged", delivery.queue, wanted.key)
            delivery.ack()
            return True
        for running in self._running:
            if running.request.identity == wanted.identity and running.delivery.lost:
                log.info("%s came again while it runs: its new delivery is kept", running)
                running.delivery = delivery
                return True
        return False

    def _fit(self, wanted: Request, need: Resources) -> interpreters.Interpreter:
        """Raise MachineError when this machine could never run it."""
        if wanted.resources.gpus:
            raise MachineError(f"experiment {wanted.key!r} wants GPUs, which this version does not give out yet")
        if not self._allocator.could_ever(need):
            raise MachineError(
                f"experiment {wanted.key!r} needs {need}, but this runner has {self._allocator.total} to give at most"
            )
        return interpreters.find(wanted.pythonver)

    def _start(
        self, wanted: Request, need: Resources, delivery: Delivery, interpreter: interpreters.Interpreter
    ) -> None:
        number = 1 + max(self._ledger.failures(wanted.identity), delivery.redeliveries or 0)
        child, self._spare = self._spare or Child(self._loop), None
        running = Running(wanted, need, delivery, child, self._clock(), number)
        child.tell = lambda event: _tell(running, event)
        self._allocator.reserve(need)
        self._running.append(running)
        self._limits.started += 1
        order = Order(
            document=wanted.document,
            queue=delivery.queue,
            attempt=number,
            last=number >= self._settings.max_attempts,
            python=str(interpreter.path),
            version=str(interpreter),
            options=self._options(),
        )
        log.info("%s starts (%s)", running, need)
        child.begin(order)

    def _options(self) -> Options:
        given = self._settings
        return Options(
            home=str(given.home),
            file_roots=given.file_root,
            s3_ca=given.s3_ca,
            s3_cert=given.s3_cert,
            s3_key=given.s3_key,
            store_patience=given.store_patience,
            env_allow=given.env_allow,
            allow_env_secrets=given.allow_env_secrets,
            schema_logs=given.schema_logs,
            debug=given.debug,
        )


def _tell(running: Running, event: Event) -> None:
    """Log what an attempt does."""
    if isinstance(event, Phase):
        log.debug("%s: phase %s", running, event.name)
    elif isinstance(event, Checkpoint) and event.error:
        log.warning("%s: a checkpoint failed, the next one will try again: %s", running, event.error)
    elif isinstance(event, Checkpoint):
        log.debug("%s: checkpoint, %d artifacts stored", running, event.uploaded)


def _broke_down(running: Running, status: int) -> str:
    how = f"was killed by signal {-status}" if status < 0 else f"ended with status {status} and no word"
    return f"experiment {running.request.key!r}, attempt {running.number}, was lost: its process {how}"
