"""The requirement lists of a request: lines of a file for pip, which must stay such, and name no files of ours."""

from __future__ import annotations

import re
from urllib.parse import unquote

from runner.message.fields import SHOWN, Fields, printable, text_of

# In characters. What a URL may have is less, and looking at a line takes time that grows faster than its length.
_LONGEST = 2000
# A pip freeze has some hundreds.
_MOST = 10_000

_EDITABLE = re.compile(r"(-e|--editable)[ =] *(?P<url>git\+[a-z]+://[^ #]+#egg=[^ ]+)")
_NAMED = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]* *(\[[^\]]*\])? *@ *(?P<url>.*)")
# What pip freeze writes of packages that were installed from files: no file is read then (sandbox/requirements.py).
_FROZEN = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]* *(\[[^\]]*\])? *@ *file:[^ ]*( *;.*)?")
_URL = re.compile(r"(?P<scheme>[A-Za-z][A-Za-z0-9+.-]*):(?P<rest>.*)")
_SCHEMES = ("http", "https", "git+https", "git+http", "git+ssh", "git+git")
# A host, revision or name that a version control system would take for an option; part of a URL, decoded.
_OPTION = re.compile(r"//-|@-")
_EGG = re.compile(r"[A-Za-z0-9._-]+(\[[A-Za-z0-9._,-]*\])?")
_LOCAL = re.compile(r"[./~]|[^\[;@ ]*/")


def requirements_of(given: Fields, name: str) -> tuple[str, ...]:
    """Read a list of requirements, without the comments that pip freeze writes."""
    lines = []
    values = given.typed(name, list) or []
    if len(values) > _MOST:
        given.fault(name, f"has {len(values)} lines, but {_MOST} is the most")
        return ()
    for index, value in enumerate(values):
        where = f"{name}[{index}]"
        line = given.parse(where, value, text_of, "").strip()
        if value is None or (isinstance(value, str) and not value.strip()):
            given.fault(where, "is empty")
        # Comments are left out: the first ones can choose the encoding that pip reads with.
        elif line and not line.startswith("#"):
            lines.append(line)
            if why := _not_installable(line):
                given.fault(where, why)
    return tuple(lines)


def _not_installable(line: str) -> str:
    """Say why this must not be in a file for pip, "" when it may.

    pip ends lines where str.splitlines does, joins those after a backslash, and replaces ``${NAME}`` by its own
    environment's variables: https://pip.pypa.io/en/stable/reference/requirements-file-format/
    """
    if len(line) > _LONGEST:
        return f"has {len(line)} characters, but {_LONGEST} is the most"
    if not printable(line) or line.endswith("\\"):
        return "must be a single line without control characters"
    if "${" in line:
        return "must not use variables of the environment"
    if editable := _EDITABLE.fullmatch(line):
        return _not_fetched(editable["url"])
    line = line.partition(" #")[0].strip()
    if line.startswith("-") or " -" in line:
        return "must be a requirement without options of pip; editable ones must be -e git+https://...#egg=..."
    return _not_in_reach(line)


def _not_in_reach(line: str) -> str:
    """Say why what a requirement names must not be installed from there, "" when it may."""
    named = _NAMED.fullmatch(line)
    if _FROZEN.fullmatch(line):
        return ""
    if named or _URL.fullmatch(line):
        return _not_fetched(named["url"] if named else line)
    path = line.partition(";")[0].partition("[")[0].strip()
    if _LOCAL.match(path) and not _inside(path):
        return "must not name a file or directory outside the workspace"
    return ""


def _not_fetched(url: str) -> str:
    """Say why a package must not be fetched from there, "" when it may."""
    match = _URL.fullmatch(url)
    if not match or match["scheme"].lower() not in _SCHEMES or not match["rest"].startswith("//"):
        return f"must name a package by a URL that begins with one of {', '.join(f'{name}://' for name in _SCHEMES)}"
    place, _, fragment = match["rest"].partition("#")
    if _OPTION.search(unquote(place)):
        return "must not have a host or revision that begins with a dash"
    for part in unquote(fragment.partition(" ")[0]).split("&"):
        name, _, value = part.partition("=")
        if name == "egg" and not _EGG.fullmatch(value):
            return f"must not have {SHOWN.repr(value)} for an egg: it must be the name of a package"
        if name == "subdirectory" and not _inside(value):
            return "must not have a subdirectory outside what is fetched"
    return ""


def _inside(path: str) -> bool:
    return not path.startswith(("/", "~")) and ".." not in path.split("/")
