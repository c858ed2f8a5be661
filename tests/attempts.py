"""Whole attempts without a supervisor: the order that it would give, and how the process that gets it ends."""

from __future__ import annotations

import json
import sys
from contextlib import closing
from pathlib import Path
from typing import Any

from runner.events import Finished
from runner.loop import Loop
from runner.order import Options, Order
from runner.supervisor.child import Child
from tests.e2e.harness import archive
from tests.loops import served


def order(
    home: Path, root: Path, script: str = "print('hello')", *, options: Any = None, config: Any = None, **members: Any
) -> Order:
    """An order for a script, its artifacts in a directory store below ``root``; ``members`` are the experiment's."""
    store = root / "store"
    store.mkdir(exist_ok=True)
    (store / "code.tar").write_bytes(archive({"main.py": script.encode()}))
    artifacts = {"workspace": {"qualified": f"file://{store}/code.tar", "unpack": True}}
    for label in ("output", "_metadata"):
        artifacts[label] = {"qualified": f"file://{store}/{label}.tar", "unpack": True, "mutable": True}
    return Order(
        document={
            "experiment": {"key": "k", "filename": "main.py", "artifacts": artifacts, **members},
            "config": config or {},
        },
        queue="local_q",
        failures=0,
        redeliveries=None,
        allowed=1,
        python=sys.executable,
        version="3",
        reported=False,
        options=Options(home=str(home), file_roots=(str(store),), **(options or {})),
    )


def carried_out(order: Order, seconds: float = 60.0) -> Finished:
    """Have an order carried out; return how the attempt says that it ended."""
    with closing(Loop()) as loop:
        child = Child(loop)
        try:
            child.begin(order)
            served(loop, lambda: child.ended() is not None, seconds=seconds)
            assert child.finished
            return child.finished
        finally:
            child.kill()
            child.close()
            child.wait(10)


def metadata(root: Path) -> dict[str, Any]:
    """Return what the newest attempt has stored of itself, below ``studioml``."""
    newest = max((root / "store" / "metadata").glob("scrape-*.json"), key=lambda path: path.stat().st_mtime_ns)
    return dict(json.loads(newest.read_text())["studioml"])
