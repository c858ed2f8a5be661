"""A message that somebody has given us by hand, in a file."""

from __future__ import annotations

import sys
import time
from dataclasses import dataclass
from pathlib import Path

from runner.crypto.private_keys import PrivateKeys
from runner.errors import ConfigError
from runner.message import envelope, request
from runner.message.request import Request
from runner.options.settings import Settings


@dataclass(frozen=True)
class ByHand(Settings):
    """The options of the runner; those of queues are of no use here, and may be missing."""

    queues_needed = False


def read(name: str, settings: Settings) -> Request:
    """Read the message in a file, ``-`` for standard input.

    One that is encrypted is opened without a look at its signature: it was given by hand. Raises RequestError with all
    faults of the message, ConfigError when there is no such file, MachineError without the key for it.
    """
    document = request.load(_content(name))
    if request.is_envelope(document):
        keys = PrivateKeys(settings.private_keys, clock=time.monotonic)
        keys.check()
        document = request.load(keys.open(envelope.read(document).payload))
    return request.from_document(document, allow_env_secrets=settings.allow_env_secrets)


def _content(name: str) -> bytes:
    try:
        return sys.stdin.buffer.read() if name == "-" else Path(name).read_bytes()
    except OSError as error:
        raise ConfigError(f"{name} cannot be read: {error.strerror}") from error
