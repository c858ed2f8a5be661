"""All harnesses: a check that takes any bytes, and what makes bytes for it."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass

from tests.fuzz import archives, conversations, envelopes, messages, metadata, stores
from tests.fuzz.mutation import Mutator


@dataclass(frozen=True)
class Harness:
    """``check`` returns, or raises what nobody expects, within ``around``."""

    check: Callable[[bytes], None]
    mutator: Mutator
    around: Callable[[], AbstractContextManager[None]] = nullcontext


HARNESSES = {
    "request": Harness(messages.check, messages.MESSAGES),
    "envelope": Harness(envelopes.check, envelopes.ENVELOPES),
    "archive": Harness(archives.check, archives.ARCHIVES),
    "metadata": Harness(metadata.check, metadata.LINES),
    "answers": Harness(stores.check_answers, conversations.ANSWERS),
    "s3": Harness(stores.check_s3, conversations.S3, stores.hostile),
    "gcs": Harness(stores.check_gcs, conversations.GCS, stores.hostile),
    "http": Harness(stores.check_http, conversations.HTTP, stores.hostile),
}
