"""What is kept on disk only to save time, and can make room for what needs it."""

from __future__ import annotations

from typing import Protocol

# What is left free of every disk, in bytes: logs, metadata and parts of results on their way have to go somewhere.
LEFT_FREE = 64 * 1024 * 1024


class Hoard(Protocol):
    """Files of which those that nobody is using may be removed at any time. Both calls may take long."""

    def used(self) -> int:
        """Bytes on disk."""

    def shrink(self, limit: int) -> int:
        """Remove what was used least recently and is not in use until at most ``limit`` bytes are left.

        Return how many are: more than that where the rest is in use.
        """
