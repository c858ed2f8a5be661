"""An experiment's output: whatever it prints, the document stays one, and what the runner wrote in it stays there."""

from __future__ import annotations

import json
from datetime import datetime, timezone

from runner.attempt.metadata import Document
from runner.message.strict_json import MAX_DEPTH, nests_deeper
from tests.fuzz.mutation import JSON_TOKENS, JSON_WORDS, Mutator

_NOW = datetime(2026, 1, 1, tzinfo=timezone.utc)


def check(data: bytes) -> None:
    """Print some lines, as console.py hands them on."""
    document = Document(schema_logs=True)
    document.studioml(host="here", artifacts={"workspace": "s3://h/b/k"})
    for line in data.decode(errors="replace").split("\n"):
        document.feed(line, _NOW)
    document.studioml(status="completed")
    written = json.loads(document.to_json())
    ours = written["studioml"]
    assert (ours["host"], ours["status"]) == ("here", "completed"), "an experiment changed what the runner wrote"
    assert ours["artifacts"]["workspace"] == "s3://h/b/k", "an experiment changed what the runner wrote"
    assert ours["log"][0].items() >= {"ts": "0", "msg": "Init"}.items(), "an experiment changed the log"
    assert not nests_deeper(written, MAX_DEPTH + 1), "the document is too deep"


LINES = Mutator(
    seeds=[
        b'{"loss": 0.5, "epoch": {"n": 3, "of": [1, 2, {"x": null}]}}\nepoch 1\n{"epoch": {"n": 4, "of": null}}',
        b'[{"op": "add", "path": "/a", "value": {"b": [1, 2]}}, {"op": "copy", "from": "/a", "path": "/c"}]\n'
        b'[{"op": "move", "from": "/a/b/0", "path": "/c/b/-"}, {"op": "test", "path": "/c/b", "value": [1, 2, 1]}]',
        b'[{"op": "add", "path": "/studioml/mine", "value": 1}]\n'
        b'[{"op": "replace", "path": "/studioml/host", "value": 2}]',
        b'{"studioml": {"log": [], "mine": 2, "host": "there"}}\n{"studioml": null}\n'
        b'[{"op": "remove", "path": "/studioml"}]',
        b'[{"op": "add", "path": "/studioml/log/-", "value": {"ts": "now", "msg": 7}}]\n'
        b'[{"op": "add", "path": "/studioml/artifacts/tb", "value": 1}]\n'
        b'[{"op": "add", "path": "/studioml/log/0", "value": 1}]',
        b'[{"op": "copy", "from": "", "path": "/a"}, {"op": "move", "from": "/studioml", "path": "/a/b"}]\n[]\n{}\n[1]',
    ],
    words=(
        *JSON_WORDS,
        *rb""" "op" "path" "from" "value" "add" "remove" "move" "replace" "copy" "test" "/studioml" "/studioml/log"
        "/studioml/log/0" "/studioml/host" "/studioml/artifacts" "/a~01/-" "/~2" "/a/00" "/a/99999999999" "/"
        "studioml" "log" "host" "artifacts" "msg" "ts" """.split(),
    ),
    tokens=JSON_TOKENS,
)
