"""Messages: whatever is in one, it is a request that harms nobody, or refused in a sentence."""

from __future__ import annotations

import json
import math
import posixpath
import re
from pathlib import Path

from runner.errors import RequestError
from runner.message import request
from runner.message.fields import printable
from runner.message.request import Request
from tests.fuzz.mutation import JSON_TOKENS, JSON_WORDS, Mutator

VECTORS = Path(__file__).parents[1] / "vectors"
_EDITABLE = re.compile(r"(-e|--editable)[ =]")


def check(data: bytes) -> None:
    """Read a message; see what may follow from it."""
    try:
        wanted = request.parse(data, allow_env_secrets=True)
    except RequestError as error:
        assert printable(str(error)), "an error's sentence breaks its line"
        assert len(str(error)) < 20_000, "an error's sentence is endless"
        return
    _check_paths(wanted)
    _check_words(wanted)
    _check_whole(wanted)


def _check_paths(wanted: Request) -> None:
    if wanted.filename != "-m":
        path = posixpath.normpath(posixpath.join("/workspace", wanted.filename))
        assert path.startswith("/workspace/"), "the file is outside of the workspace"
    for label in wanted.artifacts:
        assert posixpath.normpath(f"/attempt/{label}") == f"/attempt/{label}" != "/attempt/_runner", (
            "a label leads away"
        )
        assert posixpath.basename(label) == label, "a label is a path"


def _check_words(wanted: Request) -> None:
    """What becomes words of a command, lines of a file for pip, or variables."""
    for line in (*wanted.pythonenv, *wanted.pip):
        assert len(line.splitlines()) == 1, "a requirement is more than a line"
        assert not line.startswith("-") or _EDITABLE.match(line), "a requirement is an option of pip"
    for word in (wanted.key, wanted.filename, *wanted.args, *wanted.env, *wanted.env.values()):
        assert "\0" not in word, "the system takes no NUL"
        word.encode()
    assert not any("=" in name or not name for name in wanted.env), "a variable's name is none"


def _check_whole(wanted: Request) -> None:
    """What is made of it later: the order, the record, the lease, the log."""
    again = request.from_document(json.loads(json.dumps(wanted.document)), allow_env_secrets=True)
    assert again == wanted, "an order changes the request"
    json.dumps(request.redacted(wanted.document)).encode()
    assert re.fullmatch("[0-9a-f]{32}", wanted.identity)
    assert math.isfinite(min(wanted.longest, wanted.end_of_life)), "an experiment would never end"
    assert min(wanted.resources.cpus, wanted.resources.ram, wanted.resources.hdd, wanted.resources.gpus) >= 0
    wanted.expired(1e9)
    for artifact in wanted.artifacts.values():
        # What an HTTP server has at its root is a file without a name: its attempt says so.
        assert artifact.location.key or artifact.location.scheme in ("http", "https"), "an artifact is nowhere"
        str(artifact.location).encode()


MESSAGES = Mutator(
    seeds=[
        json.dumps(json.loads(path.read_bytes()), ensure_ascii=False).encode()
        for path in sorted(VECTORS.glob("clear_*.json"))
        if "props" not in path.name
    ],
    words=(
        *JSON_WORDS,
        *rb""" "../x" "-m" "a.b" "s3://h/b/k.tar" "file:///etc/passwd" "gs://b/k" "http://u:p@h/x" "1h30m" "'" "\\\\"
        "$(id)" "credentials" "aws" "plain" "jwt" "token" "unpack" "mutable" "saveFrequency" """.split(),
        *(b'"2 GiB"', b'"-e git+https://h/x#egg=x"', b'"x --index-url=h"', b'"--index-url h"'),
    ),
    tokens=JSON_TOKENS,
)
