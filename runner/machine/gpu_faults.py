"""Which cards broke. They stay broken until the runner is started anew: by then people have looked at them."""

from __future__ import annotations

import logging

from runner.machine.nvml import Sight, Survey

log = logging.getLogger(__name__)


class Faults:
    """Learns from surveys, and remembers."""

    def __init__(self) -> None:
        self._seen: dict[str, Sight] = {}
        self._faults: dict[str, str] = {}

    def learn(self, survey: Survey) -> None:
        """Look for what has become of the cards since the last survey."""
        whole = {sight.uuid: sight for sight in survey.sights if not sight.parent}
        for uuid, sight in whole.items():
            more = sight.uncorrected - self._seen.get(uuid, sight).uncorrected
            if sight.fault:
                self._broke(sight, sight.fault)
            elif more > 0:
                self._broke(sight, f"had {more} uncorrectable memory errors")
        for uuid, xid in survey.xids:
            if uuid in whole:
                self._broke(whole[uuid], f"failed with XID {xid}")
        for uuid, sight in self._seen.items():
            if uuid not in whole and not sight.parent and not sight.placeholder:
                self._broke(sight, "is gone")
        self._seen |= {sight.uuid: sight for sight in survey.sights}

    def of(self, sight: Sight) -> str:
        """Say what is wrong with a card, or with the one that an instance is of; "" when nothing is."""
        return self._faults.get(sight.parent or sight.uuid, "")

    def told(self, uuid: str) -> str:
        """Say it with the name of the card."""
        sight = self._seen.get(uuid)
        return f"{sight} {self.of(sight)}" if sight and self.of(sight) else ""

    def broken(self) -> list[Sight]:
        """Return the cards that broke, as they were seen last, some of which may be gone."""
        return [self._seen[uuid] for uuid in self._faults]

    def _broke(self, sight: Sight, how: str) -> None:
        if sight.uuid not in self._faults:
            self._faults[sight.uuid] = how
            log.error("%s %s: it is not given out any more. Reset or replace it, and start the runner anew", sight, how)
