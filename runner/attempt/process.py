"""The process of one attempt: its end of the contract in ``events.py``."""

from __future__ import annotations

import logging
import os
from contextlib import closing
from importlib import import_module
from pathlib import Path

from runner import events
from runner.attempt.attempt import Attempt
from runner.attempt.teller import Teller
from runner.attempt.watch import Orphaned, Watch
from runner.errors import MachineError, is_machines_own
from runner.events import Finished
from runner.lifecycle import Signals
from runner.loop import Loop
from runner.machine import process
from runner.order import Order
from runner.place import placed
from runner.secrets import concealment

log = logging.getLogger(__name__)


def serve(order_fd: int, event_fd: int) -> int:
    """Be the process of one attempt: wait for an order, carry it out, and return the exit status.

    The process may be started long before there is an order; it ends when the supervisor does.
    """
    concealment.close_memory()
    process.adopt_orphans()
    import_module("runner.storage.s3")  # 0.15 s that no order has to wait for
    line, more = _read_line(order_fd)
    if not line:
        return events.DONE

    with Signals() as signals, closing(Loop()) as loop:
        teller = Teller(event_fd, loop)
        try:
            finished = _carry_out(Order.from_line(line), loop, Watch(loop, signals, order_fd, more), teller)
        except Orphaned:
            # At once: the stores' thread may be in the middle of an upload, which must not come to its end any more.
            os._exit(events.GIVE_BACK)
        except MachineError as error:
            sentence = f"an attempt cannot be made on this machine: {error}"
            finished = Finished("misfit", sentence, verdict=error.verdict or "machine")
        except Exception as error:
            log.exception("the attempt broke down: this is a mistake in the runner")
            finished = Finished("unavailable", f"the runner made a mistake: {error!r}", verdict="machine")
        teller.tell(finished)
        teller.flush()
    return finished.status


def _carry_out(order: Order, loop: Loop, watch: Watch, teller: Teller) -> Finished:
    os.environ.update(order.variables)  # which /proc does not show
    try:
        return _attempt(order, loop, watch, teller)
    except OSError as error:
        if is_machines_own(error):
            raise MachineError(str(error)) from error
        raise


def _attempt(order: Order, loop: Loop, watch: Watch, teller: Teller) -> Finished:
    key = str(order.document["experiment"]["key"])
    with placed(Path(order.options.home), key, keep=order.options.debug) as place:
        teller.tell(events.Placed(place.name))
        attempt = Attempt(order, place, loop=loop, watch=watch, teller=teller)
        try:
            finished = attempt.run()
        finally:
            process.kill_descendants()
        attempt.close()
        return finished


def _read_line(fd: int) -> tuple[bytes, bytes]:
    """Read up to the end of a line; return it and what came with it, b"" when the writer goes away before that."""
    line = bytearray()
    while b"\n" not in line:
        data = os.read(fd, 1024 * 1024)
        if not data:
            return b"", b""
        line += data
    first, _, more = bytes(line).partition(b"\n")
    return first + b"\n", more
