"""A message's way in: from its bytes to a request that this machine can run, or the reason why not (section 2)."""

from __future__ import annotations

from dataclasses import dataclass

from runner.errors import MachineError, RequestError
from runner.machine.allocate import Allocator, Need
from runner.machine.gpus import Wish
from runner.message import envelope, request
from runner.message.envelope import Envelopes
from runner.message.request import Request
from runner.options.settings import Settings
from runner.queues.base import Delivery
from runner.sandbox import containers, interpreters, references
from runner.sandbox.interpreters import Interpreter


@dataclass(frozen=True)
class Received:
    """What a message asks for. ``name`` is that of the signed text that it came in, "" for a clear one."""

    request: Request
    name: str = ""


@dataclass(frozen=True)
class Plan:
    """A request, and what it gets of this machine; no interpreter where a container has its own."""

    need: Need
    interpreter: Interpreter | None


def read(delivery: Delivery, envelopes: Envelopes, settings: Settings) -> Received:
    """Return what a message asks for.

    Raises RequestError when nobody may run it, MachineError when this runner lacks the keys for it.
    """
    document, name = request.load(delivery.body), ""
    if request.is_envelope(document):
        sealed = envelope.read(document)
        document, name = request.load(envelopes.open(sealed, delivery.queue)), sealed.name
    wanted = request.from_document(document, allow_env_secrets=settings.allow_env_secrets)
    if not (name or settings.clear_text_messages):
        raise RequestError(f"experiment {wanted.key!r} is not encrypted, and --clear-text-messages is not set")
    return Received(wanted, name)


def plan(wanted: Request, queue: str, allocator: Allocator, settings: Settings) -> Plan:
    """Say what the request gets. Raises MachineError when this machine could never run it."""
    asked = wanted.resources
    # Who names only a number of cards wants some of each.
    slots = asked.gpus or min(1, asked.gpu_count)
    gpus = Wish(slots, asked.gpu_count, asked.gpu_mem if slots else 0, (queue, wanted.project or ""))
    need = Need(asked.cpus, asked.ram, asked.hdd, gpus)
    if not allocator.could_ever(need):
        offered = allocator.offered(need)
        raise MachineError(f"experiment {wanted.key!r} needs {need}, but this runner has {offered} to give at most")
    return Plan(need, interpreter(wanted, settings))


def interpreter(wanted: Request, settings: Settings) -> Interpreter | None:
    """Return the Python that the request names, None when its container has one.

    Raises MachineError when it is not there, or the container is none that can and may run here.
    """
    image = wanted.artifacts.get(references.LABEL)
    if image is None:
        return interpreters.find(wanted.pythonver, more=settings.python_dirs)
    references.check(image, settings.singularity_allow)
    containers.find(settings.singularity)
    return None
