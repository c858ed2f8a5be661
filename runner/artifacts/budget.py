"""The disk that unpacking may use (protocol section 4)."""

from __future__ import annotations

from runner.errors import ExperimentError
from runner.units import format_size


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
