"""A message's way in: from its bytes to a request that this machine can run, or the reason why not."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from runner import request
from runner.errors import MachineError, RequestError
from runner.machine.allocate import Allocator, Resources
from runner.queues.base import Delivery
from runner.request import Request
from runner.sandbox import interpreters
from runner.settings import Settings


@dataclass(frozen=True)
class Plan:
    """A request, and what it gets of this machine."""

    need: Resources
    interpreter: interpreters.Interpreter


def read(delivery: Delivery, settings: Settings) -> Request:
    """Return what a message asks for. Raises RequestError when nobody may run it, Sealed when this runner cannot."""
    wanted = request.parse(delivery.body, allow_env_secrets=settings.allow_env_secrets)
    if not settings.clear_text_messages:
        raise RequestError(f"experiment {wanted.key!r} is not encrypted, and --clear-text-messages is not set")
    return wanted


def plan(wanted: Request, allocator: Allocator, python_dirs: Sequence[str] = ()) -> Plan:
    """Say what the request gets. Raises MachineError when this machine could never run it."""
    need = Resources(wanted.resources.cpus, wanted.resources.ram, wanted.resources.hdd)
    if wanted.resources.gpus:
        raise MachineError(f"experiment {wanted.key!r} wants GPUs, which this version does not give out yet")
    if not allocator.could_ever(need):
        raise MachineError(
            f"experiment {wanted.key!r} needs {need}, but this runner has {allocator.total} to give at most"
        )
    return Plan(need, interpreters.find(wanted.pythonver, more=python_dirs))
