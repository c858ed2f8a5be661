"""The built file with a cache: what one experiment fetched, another one need not."""

from __future__ import annotations

from tests.e2e.harness import Workplace, archive, put

SCRIPT = """
import pathlib
data = pathlib.Path("../data/numbers")
print("numbers", data.read_text())
SPOIL and data.write_text("spoiled")
"""


def test_runners_share_artifacts_and_no_experiment_can_spoil_them(place: Workplace) -> None:
    put(place.store / "data.tar", archive({"numbers": b"1 2 3"}))
    cache = ("--cache-dir", str(place.root / "cache"), "--cache-create", "--cache-size", "1gb")
    first, second = place.start(*cache), place.start(*cache, "--max-disk", "1gb")
    for key in ("one", "two", "three"):
        message = place.message(SCRIPT.replace("SPOIL", str(key == "two")), key=key)
        message["experiment"]["artifacts"]["data"] = place.artifact("data.tar", mutable=False)
        place.publish(message, key)
        place.settled()
        assert "numbers 1 2 3" in place.output(key)
    assert first.stop() == second.stop() == 0
    told = first.log + second.log
    assert told.count("artifact 'data' was not in the cache") == 1
    assert told.count("artifact 'data' was in the cache") == 2
    assert not list((place.working / "studio-runner" / "experiments").iterdir())
