"""What a sandbox is: the place in which an experiment's code runs."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from runner.errors import MachineError
from runner.machine.users import User
from runner.message.request import Request
from runner.order import Order
from runner.place import Place


class Run(Protocol):
    """Runs one program to its end, its output going to the experiment's log.

    Returns the exit status, negative for a signal. Raises ExperimentError at the time limit, and whatever stops the
    attempt.
    """

    def __call__(self, argv: Sequence[str], env: Mapping[str, str], cwd: Path) -> int:
        """Start, wait, and leave nothing running."""


@dataclass(frozen=True)
class Job:
    """All that a sandbox is told.

    ``say`` writes one line of the runner's own into the experiment's log. ``pause`` waits so many seconds and raises
    what stops the attempt: nothing here may wait in another way.
    """

    request: Request
    order: Order
    place: Place
    run: Run
    say: Callable[[str], None]
    pause: Callable[[float], None]


def user_of(order: Order) -> User | None:
    """Return the user that an order's programs run as, None for the runner's own. Raises MachineError."""
    if not order.options.run_as:
        return None
    try:
        return User.named(order.options.run_as)
    except KeyError as error:
        raise MachineError(f"there is no user {order.options.run_as!r} on this machine any more") from error


class Sandbox(Protocol):
    """One kind of sandbox, made of a Job."""

    def prepare(self) -> None:
        """Make ready what the code needs. Raises ExperimentError (a requirement fails), Unavailable, MachineError."""

    def command(self) -> tuple[Sequence[str], Mapping[str, str]]:
        """Return argv and environment of the experiment; to be started in the workspace."""

    def status(self, status: int) -> int:
        """Return the experiment's exit status, negative for a signal, by that of the program that ``command`` named."""

    def packages(self) -> list[dict[str, Any]]:
        """Return what is installed, as ``pipdeptree --json`` would list it."""
