"""The end of an upload: the object is there as a whole, or nothing is left of it."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Protocol, TypeVar


class Upload(Protocol):
    """An upload under way. ``finish`` makes it an object, ``abort`` gives up what there is of it."""

    def finish(self) -> None:
        """Send the rest, and make the object appear. Raises what the store answers."""

    def abort(self) -> None:
        """Have the store forget it, if that can be done; also when ``finish`` has failed."""


U = TypeVar("U", bound=Upload)


@contextmanager
def completed(upload: U) -> Iterator[U]:
    """Let an upload be written to, and finish it; abort it when either raises anything."""
    try:
        yield upload
        upload.finish()
    except BaseException:
        upload.abort()
        raise
