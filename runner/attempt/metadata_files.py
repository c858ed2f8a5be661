"""What is uploaded of an attempt's metadata: the scraped document, and the request without its secrets (section 6)."""

from __future__ import annotations

import json
import platform
from datetime import datetime, timezone

from runner.artifacts.artifacts import METADATA
from runner.attempt.metadata import Document, accession
from runner.errors import MachineError
from runner.machine.plain_files import new
from runner.message import request
from runner.order import Order
from runner.place import Place, turn
from runner.secrets.masking import NONE, Secrets


class MetadataFiles:
    """The metadata document of an attempt, in the files that are uploaded of it.

    ``began`` is in seconds since 1970. ``secrets`` are masked in all of them.
    """

    def __init__(
        self, order: Order, wanted: request.Request, place: Place, *, began: float, secrets: Secrets = NONE
    ) -> None:
        second, nth = turn(place.home, int(began))
        self.accession = accession(platform.node(), second, nth=nth)
        self._order, self._wanted, self._secrets = order, wanted, secrets
        self._directory, self._scratch = place.label(METADATA), place.scratch
        self._document = Document(schema_logs=order.options.schema_logs)
        labels = ("author", "project_version", "project_experiment")
        given = {label: getattr(wanted, label) for label in labels if getattr(wanted, label) is not None}
        self.add(
            load_time=stamp(),
            host=platform.node(),
            experiment={"key": wanted.key, "project": wanted.project, **given},
            artifacts={label: artifact.qualified for label, artifact in wanted.artifacts.items()},
        )

    def hear(self, line: str) -> bool:
        """Take one line of the experiment's output; return whether it was JSON that is part of the document now."""
        return self._document.feed(line, datetime.now(timezone.utc))

    def add(self, **members: object) -> None:
        """Add what the runner itself knows, below ``studioml``."""
        self._document.studioml(**members)

    def write(self, status: str, **members: object) -> None:
        """Put the document, and the request without its secrets, where they are uploaded from; if they are wanted.

        Raises MachineError.
        """
        if METADATA not in self._wanted.artifacts:
            return
        counts = {"skipped": self._document.skipped, "dropped": self._document.dropped}
        self.add(status=status, **members, **{name: count for name, count in counts.items() if count})
        try:
            self._directory.mkdir(exist_ok=True)
            self._put(f"scrape-host-{self.accession}.json", self._document.to_json())
            kept = f"request-host-{self.accession}.json"
            if not (self._directory / kept).exists():
                self._put(kept, json.dumps(request.redacted(self._order.document)).encode())
        except OSError as error:
            raise MachineError(f"the metadata cannot be written: {error.strerror}") from error

    def _put(self, name: str, data: bytes) -> None:
        """In one step: a checkpoint may be reading what is there."""
        unfinished = self._scratch / name
        new(unfinished, self._secrets.mask(data))
        unfinished.replace(self._directory / name)


def stamp() -> str:
    """The time as ISO 8601 with its zone."""
    return datetime.now().astimezone().isoformat()
