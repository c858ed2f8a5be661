"""What an archive's name says, and the disk that unpacking may use (protocol section 4)."""

from __future__ import annotations

from runner.errors import ExperimentError
from runner.units import format_size

# Longest first: ".tar.gz" is no ".gz". The earlier clients write bzip2 under ".tgz".
_SUFFIXES = {
    ".tar.bzip2": "bz2",
    ".tar.bz2": "bz2",
    ".tar.gz": "gz",
    ".tbz2": "bz2",
    ".tbz": "bz2",
    ".tgz": "bz2",
    ".tar": "",
}


def is_archive_name(key: str) -> bool:
    """True when a key's end says that it is an archive."""
    return any(key.lower().endswith(suffix) for suffix in _SUFFIXES)


def compression_of(key: str) -> str:
    """Return how an archive of that name is to be written: "" for not at all, ``gz`` or ``bz2``."""
    return next((kind for suffix, kind in _SUFFIXES.items() if key.lower().endswith(suffix)), "")


class Budget:
    """The disk that an attempt may use, in bytes; None for any amount."""

    def __init__(self, limit: int | None) -> None:
        self._limit = limit
        self.spent = 0

    def spend(self, size: int) -> None:
        """Count ``size`` bytes, before they are written. Raises ExperimentError when they are too many."""
        self.spent += size
        if self._limit is not None and self.spent > self._limit:
            raise ExperimentError(
                f"it needs more disk than the {format_size(self._limit)} that it asked for: raise resources_needed.hdd",
                verdict="disk",
            )
