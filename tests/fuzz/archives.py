"""Archives: whatever is in one, it stays in its directory and in its budget."""

from __future__ import annotations

import bz2
import gzip
import io
import lzma
import os
import re
import shutil
import stat
import tarfile
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from random import Random
from typing import Any

from runner.artifacts.budget import Budget
from runner.artifacts.unpacking import unpack
from runner.errors import ExperimentError
from runner.message.fields import printable
from tests.fuzz.mutation import Mutator

_BUDGET = 4 * 1024 * 1024


def check(data: bytes) -> None:
    """Unpack an archive; look at what came of it."""
    with _empty() as inside:
        try:
            unpack(io.BytesIO(data), inside, Budget(_BUDGET))
        except ExperimentError as error:
            assert len(str(error)) < 2000, "an error's sentence is endless"
            assert printable(str(error)), "an error's sentence breaks its line"
        assert os.listdir(inside.parent) == ["inside"], "something is outside of the directory"
        assert _checked(inside) <= _BUDGET, "more is there than the budget allows"


@cache
def _place() -> tempfile.TemporaryDirectory[str]:
    """Return the one directory for all: in memory, where that can be, since every input makes and removes files."""
    memory = Path("/dev/shm")
    return tempfile.TemporaryDirectory(dir=memory if os.access(memory, os.W_OK) else None)


@contextmanager
def _empty() -> Iterator[Path]:
    """Make an empty directory beside which there is nothing."""
    inside = Path(_place().name, "inside")
    inside.mkdir()
    try:
        yield inside
    finally:
        try:
            inside.rmdir()
        except OSError:
            shutil.rmtree(inside)


def _checked(inside: Path) -> int:
    """Return how many bytes there are, of nothing but files, directories and links that stay inside."""
    size, root = 0, f"{os.path.realpath(inside)}/"
    for directory, names, files in os.walk(inside):
        for path in (Path(directory, name) for name in (*names, *files)):
            status = path.lstat()
            if stat.S_ISLNK(status.st_mode):
                assert f"{os.path.realpath(path)}/".startswith(root), "a link leads out"
                continue
            assert stat.S_ISREG(status.st_mode) or stat.S_ISDIR(status.st_mode), "a special file"
            assert not status.st_mode & 0o7000, "a special mode bit"
            size += status.st_size if stat.S_ISREG(status.st_mode) and status.st_nlink == 1 else 0
    return size


def _tar(*members: tuple[str, dict[str, Any]], **options: Any) -> bytes:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w", **options) as made:
        for name, fields in members:
            member = tarfile.TarInfo(name)
            for field, value in fields.items():
                setattr(member, field, value)
            made.addfile(member, io.BytesIO(b"x" * member.size))
    content = buffer.getvalue().rstrip(b"\0")
    return content.ljust(-(-len(content) // 512) * 512 + 1024, b"\0")  # without most of the padding


_LINKS = (
    ("d/", {"type": tarfile.DIRTYPE, "mode": 0o755}),
    ("d/file", {"size": 700, "mode": 0o6755, "mtime": 1e9}),
    ("d/up", {"type": tarfile.SYMTYPE, "linkname": "../d/file"}),
    ("d/hard", {"type": tarfile.LNKTYPE, "linkname": "d/file"}),
)
_SPARSE = {"GNU.sparse.major": "1", "GNU.sparse.minor": "0", "GNU.sparse.name": "s", "GNU.sparse.realsize": "9999"}
_TARS = [
    _tar(*_LINKS),
    _tar(("n" * 200, {"size": 3}), ("l", {"type": tarfile.SYMTYPE, "linkname": "n" * 180}), format=tarfile.GNU_FORMAT),
    _tar(("é" * 90, {"size": 3, "mtime": 1.5, "pax_headers": {"path": "other"}}), format=tarfile.PAX_FORMAT),
    _tar(("s", {"size": 512, "pax_headers": _SPARSE}), format=tarfile.PAX_FORMAT, pax_headers={"comment": "global"}),
    _tar(("device", {"type": tarfile.CHRTYPE, "devmajor": 1}), ("fifo", {"type": tarfile.FIFOTYPE})),
    _tar(("gnu", {"type": tarfile.GNUTYPE_SPARSE, "size": 600}), format=tarfile.GNU_FORMAT),
    _tar(("./a/b/../c", {}), ("/etc/passwd", {}), ("a", {"type": tarfile.SYMTYPE, "linkname": ".."}), ("a/x", {})),
]
_COMPRESSIONS = (gzip.compress, bz2.compress, lzma.compress)


def _repaired(data: bytes, random: Random) -> bytes:
    """Put the right checksum into every header, or the reader looks no further; compress some."""
    if data[:2] in (b"\x1f\x8b", b"BZ", b"\xfd7") or not random.getrandbits(3):
        return data
    fixed = bytearray(data)
    for start in range(0, len(fixed) - 511, 512):
        block = fixed[start : start + 512]
        if block[257:262] == b"ustar":
            block[148:156] = b" " * 8
            fixed[start + 148 : start + 156] = b"%06o\0 " % sum(block)
    return random.choice(_COMPRESSIONS)(fixed) if not random.getrandbits(4) else bytes(fixed)


ARCHIVES = Mutator(
    seeds=[*_TARS, *_TARS, *(compress(tar) for compress in _COMPRESSIONS for tar in _TARS[:2])],
    words=(
        *(b"0000000\0", b"7777777\0", b"77777777777\0", b"\x80" + b"\0" * 10 + b"\x09", b"\xff" * 12, b"00000000010\0"),
        *(b"ustar\00000", b"ustar  \0", b"d/up/x", b"d/file", b"../../x", b"d/..", b"x" * 100, b"./", b"d/file/x"),
        *(b"10 path=a\n", b"12 size=9999\n", b"99999999 path=a\n", b"22 GNU.sparse.map=0,9\n", b"16 linkpath=../\n"),
        *(b"20 GNU.sparse.size=5\n", b"18 hdrcharset=BIN\n", b"14 mtime=nan\n", b"14 mtime=1e99\n"),
        *(bytes([kind]) for kind in b"\x000123456789gxLKSDNVMXA"),
    ),
    tokens=re.compile(rb"[^\0]{1,100}"),
    repair=_repaired,
    in_place=True,
)
