"""The metadata document: what lines of output make of it."""

from __future__ import annotations

import json
import random
import time
from datetime import datetime, timezone
from typing import Any

import pytest

from runner.attempt.metadata import Document, accession

NOW = datetime(2026, 1, 2, 3, 4, 5, tzinfo=timezone.utc)
STAMP = "2026-01-02T03:04:05+00:00"
START = {"studioml": {"log": [{"ts": "0", "msg": "Init"}, {"ts": "1", "msg": ""}]}}


def read(document: Document) -> Any:
    return json.loads(document.to_json())


def fed(*lines: str, schema_logs: bool = True) -> Document:
    document = Document(schema_logs=schema_logs)
    document.studioml(host="here")
    for line in lines:
        document.feed(line, NOW)
    return document


def add(path: str, value: Any) -> str:
    return json.dumps([{"op": "add", "path": path, "value": value}])


def test_a_document_starts_as_the_protocol_says() -> None:
    assert read(Document(schema_logs=True)) == START


def test_objects_are_merged_arrays_of_operations_applied_and_all_else_logged() -> None:
    document = fed(
        '{"loss": 0.5, "old": 1}', ' {"loss": 0.25, "old": null} ', add("/epochs", [1]), "hello", add("/epochs/-", 2)
    )
    log = [*START["studioml"]["log"], {"ts": STAMP, "msg": "hello"}]
    assert read(document) == {"loss": 0.25, "epochs": [1, 2], "studioml": {"log": log, "host": "here"}}
    assert (document.skipped, document.dropped) == (0, 0)


TEXT = ["", "[1, 2]", "[]", "{'a': 1}", '{"loss": NaN}', "[  0%] done", '{"a": 1', '"text"', "7", '{"a": 1} {"b": 2}']


@pytest.mark.parametrize("line", [*TEXT, '{"a": 1, "a": 2}', "[" * 5000, '{"a": ' + "1" * 2000 + "}"])
def test_what_is_no_change_is_text(line: str) -> None:
    document = fed(line)
    assert read(document)["studioml"]["log"][2:] == [{"ts": STAMP, "msg": line}]
    assert set(read(document)) == {"studioml"}
    assert document.skipped == 0


def test_text_is_kept_only_when_it_is_wanted() -> None:
    assert read(fed("hello", '{"a": 1}', schema_logs=False)) == {
        "a": 1,
        "studioml": {**START["studioml"], "host": "here"},
    }


@pytest.mark.parametrize(
    "line",
    [
        '[{"op": "add", "path": "/a", "value": 1}, {"op": "test", "path": "/a", "value": 2}]',
        '[{"op": "add", "path": "/x/y", "value": 1}]',
        '[{"op": "remove", "path": "/nothing"}]',
        '[{"op": "nonsense", "path": "/a"}]',
    ],
)
def test_a_line_that_does_not_apply_changes_nothing_and_is_counted(line: str) -> None:
    document = fed('{"b": 1}')
    before = document.to_json()
    document.feed(line, NOW)
    assert document.to_json() == before
    assert document.skipped == 1


@pytest.mark.parametrize(
    "line",
    [
        '{"studioml": {"mine": 1}}',
        '{"studioml": {"experiment": {"mine": 1}}}',
        '{"studioml": {"host": "here", "mine": 1, "absent": null}}',
        add("/studioml/mine", 1),
        add("/studioml/experiment/mine", 1),
        add("/studioml/log/-", {"ts": "x", "msg": "mine"}),
        add("/studioml/log/2", {"ts": "x", "msg": "mine"}),
        '[{"op": "test", "path": "/studioml/host", "value": "here"}, {"op": "add", "path": "/mine", "value": 1}]',
        '[{"op": "copy", "from": "/studioml/host", "path": "/mine"}]',
    ],
)
def test_experiments_may_add_below_studioml(line: str) -> None:
    document = fed()
    document.studioml(experiment={"key": "k"})
    document.feed(line, NOW)
    assert document.skipped == 0
    assert "mine" in json.dumps(read(document))
    assert read(document)["studioml"]["experiment"]["key"] == "k"


@pytest.mark.parametrize(
    "line",
    [
        '{"studioml": null}',
        '{"studioml": 1}',
        '{"studioml": {"host": null}}',
        '{"studioml": {"host": "there"}, "other": 1}',
        '{"studioml": {"host": {"mine": 1}}}',
        '{"studioml": {"experiment": {"key": "l"}}}',
        '{"studioml": {"experiment": []}}',
        '{"studioml": {"log": []}}',
        add("/studioml", {}),
        add("", {}),
        add("", 1),
        add("/studioml/host", "there"),
        add("/studioml/log", []),
        add("/studioml/log/0", {}),
        '[{"op": "remove", "path": "/studioml/host"}]',
        '[{"op": "remove", "path": "/studioml/log/0"}]',
        '[{"op": "replace", "path": "/studioml/host", "value": "there"}]',
        '[{"op": "replace", "path": "/studioml/host", "value": "here"}]',
        '[{"op": "replace", "path": "", "value": {}}]',
        '[{"op": "move", "from": "/studioml/host", "path": "/mine"}]',
        '[{"op": "move", "from": "/studioml", "path": "/mine"}]',
        '[{"op": "copy", "from": "/studioml/host", "path": "/studioml/mine"}]',
        '[{"op": "add", "path": "/studioml/a", "value": 1}, {"op": "remove", "path": "/studioml/host"}]',
    ],
)
def test_experiments_may_do_nothing_else_there(line: str) -> None:
    document = fed()
    document.studioml(experiment={"key": "k"})
    before = document.to_json()
    document.feed(line, NOW)
    assert document.to_json() == before
    assert document.skipped == 1


def test_the_runner_may_set_what_it_likes() -> None:
    document = fed('{"studioml": {"status": "mine"}}')
    document.studioml(status="running", load_time="now")
    document.studioml(status="completed")
    assert read(document)["studioml"] == {
        **START["studioml"],
        "host": "here",
        "status": "completed",
        "load_time": "now",
    }


def test_the_log_keeps_the_newest_lines() -> None:
    document = fed(*(f"line {number}" for number in range(12_000)))
    log = read(document)["studioml"]["log"]
    assert len(log) == 10_000
    assert log[-1]["msg"] == "line 11999"
    assert document.dropped == 2_002


def test_the_log_keeps_few_long_lines() -> None:
    document = fed(*(["x" * 100_000] * 1000), "last")
    log = read(document)["studioml"]["log"]
    assert log[-1]["msg"] == "last"
    assert len(document.to_json()) < 5_000_000
    assert len(log) + document.dropped == 1003


def test_a_log_that_was_copied_or_added_to_stays_apart() -> None:
    document = fed(
        '[{"op": "copy", "from": "/studioml/log", "path": "/mine"}]', "one", add("/studioml/log/-", 7), "two"
    )
    assert read(document)["mine"] == START["studioml"]["log"]
    assert [entry if entry == 7 else entry["msg"] for entry in read(document)["studioml"]["log"]] == [
        *("Init", "", "one"),
        *(7, "two"),
    ]


def test_added_log_entries_have_the_same_limit() -> None:
    document = fed(*(add("/studioml/log/-", {"msg": "x" * 500_000}) for _ in range(40)))
    assert len(document.to_json()) < 5_000_000
    assert document.dropped


def test_a_document_does_not_grow_without_end_but_goes_on() -> None:
    document = fed(*(json.dumps({f"member {number}": "x" * 900_000}) for number in range(20)))
    assert 11_000_000 < len(document.to_json()) < 13_000_000
    assert document.skipped > 5
    for number in range(13):
        document.feed(json.dumps({f"member {number}": None}), NOW)
    document.feed(json.dumps({"again": "x" * 900_000}), NOW)
    assert "again" in read(document)


def test_lines_that_replace_each_other_never_fill_the_document() -> None:
    document = fed(
        *(json.dumps({"best": f"{number}" * 300_000}) for number in range(10)),
        *(json.dumps({"best": "x" * 900_000}) for _ in range(30)),
    )
    assert document.skipped == 0


def test_copies_do_not_make_a_document_grow_without_end() -> None:
    double = '[{"op": "copy", "from": "/a", "path": "/a/-"}]'
    document = fed('{"a": ["some text"]}', *([double] * 40))
    assert document.skipped > 10
    copies = (f'[{{"op": "copy", "from": "/b", "path": "/{number}"}}]' for number in range(100))
    document = fed(json.dumps({"b": "x" * 250_000}), *copies)
    assert document.skipped > 10
    assert 11_000_000 < len(document.to_json()) < 13_000_000


def test_a_line_that_is_too_long_is_text() -> None:
    document = fed(json.dumps({"a": "x" * 2_000_000}))
    assert "a" not in read(document)
    assert read(document)["studioml"]["log"][-1]["msg"].startswith('{"a": "xxx')


def test_a_patch_that_is_too_long_is_skipped() -> None:
    assert fed(json.dumps([{"op": "add", "path": "/a", "value": 1}] * 1001)).skipped == 1


def test_half_characters_do_not_hinder_the_writing() -> None:
    document = fed('{"a": "\\ud800"}', "caf\udce9", "é")
    assert [entry["msg"] for entry in read(document)["studioml"]["log"][2:]] == ["caf?", "é"]


def test_whatever_is_printed_leaves_a_good_document() -> None:
    chance = random.Random(6902)
    names = ["", "a", "studioml", "log", "host", "0", "1", "-", "~0", "~2", "deep"]
    values = [None, 1, True, "x", [], {}, [1, {"a": 2}], {"studioml": {"host": 1}}, {"a": {"deep": []}}]
    document = fed()
    for _ in range(3000):
        path = "".join(f"/{chance.choice(names)}" for _ in range(chance.randrange(5)))
        operation = {
            "op": chance.choice(["add", "remove", "replace", "move", "copy", "test"]),
            "path": path,
            "from": f"/{chance.choice(names)}",
            "value": chance.choice(values),
        }
        merging = {chance.choice(names): chance.choice(values)}
        document.feed(json.dumps(chance.choice([merging, [operation], [operation, operation]])), NOW)
        told = read(document)["studioml"]
        assert told["host"] == "here"
        assert told["log"][:2] == START["studioml"]["log"]
    assert 0 < document.skipped < 3000


def test_a_line_of_text_costs_no_more_in_a_large_document() -> None:
    document = fed(*(json.dumps({f"member {number}": [0] * 100_000}) for number in range(30)))
    began = time.process_time()
    for _ in range(2000):
        document.feed("text", NOW)
    # Copying the document even once for each line would take a hundred times as long.
    assert time.process_time() - began < 2.0


def test_accessions_sort_by_time() -> None:
    assert accession("host", 0) == "host-0"
    assert accession("host", 61.9) == "host-z"
    assert accession("host", 62) == "host-10"
    names = [accession("h", moment) for moment in range(1_700_000_000, 1_900_000_000, 7_654_321)]
    assert names == sorted(names)
    assert len(set(map(len, names))) == 1


def test_attempts_of_one_second_have_names_of_their_own() -> None:
    assert [accession("host", 62.9, nth=nth) for nth in (0, 1, 62)] == ["host-10", "host-10-1", "host-10-10"]
