"""An experiment's requirement lists, made installable: pure text work."""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass
from urllib.parse import unquote

# A hash may follow the path: "#sha256=…".
_LOCAL = re.compile(
    r"^(?P<package>[A-Za-z0-9][A-Za-z0-9._-]*(\[.*\])?)\s*@\s*file:(?P<path>[^\s#]*)\S*(?P<marker>\s*;.*)?", re.ASCII
)
_FILE_VERSION = re.compile(r"/[^/]+?-(?P<version>\d[\w.!+]*?)(-[^/]*\.whl|\.tar\.gz|\.zip)$", re.ASCII)
_TENSORFLOW = re.compile(r"^tensorflow\s*(===?\s*(?P<version>1\.[\w.*]+|2\.0[\w.*]*))?\s*(;.*|#.*)?$", re.I)
_NAME = re.compile(r"^[A-Za-z0-9][A-Za-z0-9._-]*", re.ASCII)


@dataclass(frozen=True)
class Installable:
    """What pip is told, and one sentence for each line that was changed."""

    requirements: tuple[str, ...]
    remarks: tuple[str, ...]


def normal_name(requirement: str) -> str:
    """Return the package's name as indexes compare it, "" when the line does not start with one (PEP 503)."""
    match = _NAME.match(requirement.strip())
    return re.sub(r"[-_.]+", "-", match[0]).lower() if match else ""


def installable(requirements: Iterable[str], *, studioml: str = "", gpu_python: str = "") -> Installable:
    """Turn ``pip freeze`` lines into ones that can be installed here (protocol sections 1 and 5).

    ``studioml`` is the path of the client's own package, in the workspace, which replaces any ``studioml`` line.
    ``gpu_python`` is the interpreter's version where the experiment has GPUs.
    """
    kept, remarks = [], []
    for line in map(str.strip, requirements):
        name = normal_name(line)
        if name == "pkg-resources":
            continue  # Debian's pip freeze invents it
        if name == "studioml" and studioml:
            kept.append(studioml)
        elif _LOCAL.match(line):
            kept.append(_from_index(line))
            remarks.append(f"{line!r} is a file of the submitting machine: installing {kept[-1]!r} instead")
        elif gpu_python and name == "tensorflow":
            kept.append(_for_gpus(line, gpu_python))
        else:
            kept.append(line)
    return Installable(tuple(kept), tuple(remarks))


def _for_gpus(line: str, python: str) -> str:
    """Name TensorFlow's package for GPUs where it is one of its own: up to 2.0.

    Without a version, pip takes the newest that there is for the interpreter: since Python 3.8 a later one.
    """
    match = _TENSORFLOW.match(line)
    if not match or (not match["version"] and _minor(python) >= (3, 8)):
        return line
    return "tensorflow_gpu" + line[len("tensorflow") :]


def _minor(python: str) -> tuple[int, ...]:
    return tuple(int(part) for part in python.split(".")[:2])


def _from_index(line: str) -> str:
    """``studioml @ file:///x/studioml-0.0.49-py3-none-any.whl`` → ``studioml==0.0.49``; without a version, the name."""
    match = _LOCAL.match(line)
    assert match is not None  # noqa: S101 -- the caller has looked
    version = _FILE_VERSION.search(unquote(match["path"]))
    return match["package"] + (f"=={version['version']}" if version else "") + (match["marker"] or "")
