"""A short run of every harness, on inputs that are made to a plan; ``make fuzz`` is the long one."""

from __future__ import annotations

import io
import json
import tarfile
from itertools import islice
from pathlib import Path
from random import Random
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.fuzz import archives, messages, metadata
from tests.fuzz.conversations import NEXT
from tests.fuzz.harnesses import HARNESSES

FOUND = Path(__file__).parent / "found"

# The same inputs every time: whoever looks for new ones has time to look at what is found.
planned = settings(max_examples=60, deadline=None, derandomize=True, database=None)


@pytest.mark.parametrize("path", sorted(FOUND.iterdir()), ids=lambda path: path.name)
def test_what_was_found_once_is_good_now(path: Path) -> None:
    harness = HARNESSES[path.name.partition("-")[0]]
    with harness.around():
        harness.check(path.read_bytes())


@pytest.mark.parametrize("name", HARNESSES)
def test_damaged_inputs_do_no_damage(name: str) -> None:
    harness = HARNESSES[name]
    with harness.around():
        for data in (*harness.mutator.seeds, *islice(harness.mutator.inputs(Random(0)), 300)):
            harness.check(data)


TEXTS = st.text(max_size=30) | st.sampled_from(
    ["", "..", "/", "-m", "3.10", "1e9", "2 GiB", "\0", "${HOME}", "a" * 300]
)
VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | TEXTS,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(TEXTS, inner, max_size=3),
    max_leaves=6,
)
MESSAGE = json.loads((messages.VECTORS / "clear_hello.json").read_text())


def ways(value: Any, *way: str) -> list[tuple[str, ...]]:
    """Return the ways to all members of a message."""
    deeper = [ways(member, *way, name) for name, member in value.items()] if isinstance(value, dict) else []
    return [way, *(each for found in deeper for each in found)] if way else [each for found in deeper for each in found]


@planned
@given(st.lists(st.tuples(st.sampled_from(ways(MESSAGE)), VALUES), min_size=1, max_size=4))
def test_messages_with_any_member_changed(changes: list[tuple[tuple[str, ...], Any]]) -> None:
    document = json.loads(json.dumps(MESSAGE))
    for (*way, last), value in changes:
        place = document
        for step in way:
            place = place.get(step) if isinstance(place, dict) else None
        if isinstance(place, dict):
            place[last] = value
    messages.check(json.dumps(document).encode())


POINTERS = st.lists(st.sampled_from(["studioml", "log", "host", "a", "b", "0", "-", "~1"]), max_size=4).map(
    lambda tokens: "".join(f"/{token}" for token in tokens)
)
OPERATIONS = st.fixed_dictionaries(
    {"op": st.sampled_from(["add", "remove", "replace", "move", "copy", "test"]), "path": POINTERS},
    optional={"from": POINTERS, "value": VALUES},
)
PATCHES = st.dictionaries(st.sampled_from(["studioml", "log", "host", "a", "b"]), VALUES, max_size=3)


@planned
@given(st.lists(PATCHES | st.lists(OPERATIONS, max_size=4) | VALUES, max_size=6))
def test_experiments_that_print_any_patches(lines: list[Any]) -> None:
    metadata.check(b"\n".join(json.dumps(line).encode() for line in lines))


NAMES = st.sampled_from(["a", "a/b", "a/b/c", "./a", "../a", "/a", "a/../b", "a" * 300, "é\n", "."])
MEMBERS = st.fixed_dictionaries(
    {"name": NAMES, "type": st.sampled_from([b"0", b"1", b"2", b"3", b"5", b"6", b"L", b"S", b"x", b"g", b"?"])},
    optional={
        "linkname": NAMES,
        "size": st.integers(0, 3000),
        "mode": st.integers(0, 0o7777),
        "mtime": st.integers(-1, 2**40),
        "pax_headers": st.dictionaries(st.sampled_from(["path", "size", "linkpath", "mtime"]), TEXTS, max_size=2),
    },
)


@planned
@given(st.lists(MEMBERS, max_size=6), st.sampled_from([tarfile.PAX_FORMAT, tarfile.GNU_FORMAT]), st.integers(0, 5000))
def test_archives_of_any_members(members: list[dict[str, Any]], format: int, cut: int) -> None:  # noqa: A002
    buffer = io.BytesIO()
    for fields in members:
        member = tarfile.TarInfo()
        for name, value in fields.items():
            setattr(member, name, value)
        buffer.write(member.tobuf(format, errors="replace"))
        buffer.write(b"x" * (-(-member.size // 512) * 512))
    archives.check(buffer.getvalue() + b"\0" * cut)


HEADERS = st.dictionaries(
    st.sampled_from(
        ["ETag", "Content-Length", "Content-Range", "Content-Encoding", "Location", "Range", "x-goog-generation"]
    ),
    st.integers().map(str)
    | st.sampled_from(["bytes 0-15/40", "bytes=0-15", "gzip", "/x", "http://[", '"a"'])
    | st.text(st.characters(codec="latin-1", exclude_characters="\r\n"), max_size=20),
    max_size=4,
)
BODIES = st.binary(max_size=100) | st.sampled_from(
    [f"<Error><Code>{code}</Code></Error>".encode() for code in ("NoSuchKey", "SlowDown", "{bucket}", "\n")]
)


def answer(status: int, headers: dict[str, str], body: bytes) -> bytes:
    lines = [f"HTTP/1.1 {status} x", *(f"{name}: {value}" for name, value in headers.items()), "", ""]
    return "\r\n".join(lines).encode("latin-1") + body


STATUSES = st.sampled_from([100, 200, 204, 206, 301, 307, 308, 400, 401, 403, 404, 412, 416, 500, 503, 999])


@pytest.mark.parametrize("name", ["s3", "gcs", "http"])
def test_stores_that_answer_anything(name: str) -> None:
    harness = HARNESSES[name]

    @planned
    @given(st.sampled_from("rew"), st.lists(st.builds(answer, STATUSES, HEADERS, BODIES), max_size=5))
    def ask(what: str, answers: list[bytes]) -> None:
        harness.check(what.encode() + NEXT.join(answers))

    with harness.around():
        ask()
