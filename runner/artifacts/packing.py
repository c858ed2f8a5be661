"""Packing directories into tar archives while they are read."""

from __future__ import annotations

import hashlib
import itertools
import os
import stat
import tarfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import IO

from runner.artifacts import sparse
from runner.artifacts.tar_writing import Archive, archive
from runner.artifacts.walking import Entry, kept_target, members, opened, unreadable
from runner.errors import ExperimentError
from runner.message.archive_names import compression_of
from runner.secrets.masking import NONE, Search, Secrets
from runner.storage.base import CHUNK, Writer

SPARSE = "sparse"
"""Instead of a digest, of a file that was packed without its holes: nobody should have to read all of them."""

Note = Callable[[Entry, str], object]
"""Told each member as it was packed, with the SHA-256 of a file's content, SPARSE, or "" where it has none."""


def unnoted(_entry: Entry, _digest: str) -> None:
    """Take no note: see Note."""


def everything(_entry: Entry) -> bool:
    """Leave nothing out."""
    return True


def pack(  # noqa: PLR0913 -- what of a directory goes where, and what is made of it
    directory: Path,
    out: Writer,
    name: str,
    *,
    first: str = "",
    note: Note = unnoted,
    barred: Secrets = NONE,
    wanted: Callable[[Entry], bool] = everything,
) -> None:
    """Write a directory's content as an archive, compressed as ``name`` says, with the file ``first`` before all else.

    Only what is ``wanted``; the content of a directory is asked for by itself.
    Files that vanish meanwhile are left out; one that grows or shrinks keeps the size that it had when it was opened
    (NUL bytes take the place of what is gone). Of sparse files only the data is packed. Hard links stay such, symbolic
    ones to full paths below the directory become relative. Those that lead out of it, which would not be unpacked, are
    left out, as are sockets, pipes and devices. Raises ExperimentError for what cannot be read, and for what has one of
    the ``barred`` secrets in it; errors of ``out`` pass through.
    """
    with archive(out, compression_of(name)) as made:
        packed = _Packed(made, note, barred)
        for entry in filter(wanted, members(directory, first)):
            packed.add(entry)


class _Packed:
    """An archive being written, and the files in it that have other names too."""

    def __init__(self, made: Archive, note: Note, barred: Secrets) -> None:
        self._archive, self._note, self._barred = made, note, barred
        self._linked: dict[tuple[int, int], tuple[tarfile.TarInfo, str]] = {}

    def add(self, entry: Entry) -> None:
        if self._barred.within(os.fsencode(f"{entry.name}\0{entry.target}")):
            raise _secret_in(entry)
        if stat.S_ISLNK(entry.status.st_mode):
            self._add_link(entry)
            return
        if not stat.S_ISREG(entry.status.st_mode):
            self._finish(entry, _member(entry))
            return
        try:
            entry, file = opened(entry)
        except FileNotFoundError:
            return
        except OSError as error:
            raise unreadable(entry.path, error) from error
        with file:
            self._add_file(entry, file)

    def _add_link(self, entry: Entry) -> None:
        member = _member(entry)
        member.linkname = kept_target(entry)
        self._finish(entry, member if member.linkname else None)

    def _add_file(self, entry: Entry, file: IO[bytes]) -> None:
        member, inode = _member(entry), (entry.status.st_dev, entry.status.st_ino)
        known, digest = self._linked.get(inode, (None, ""))
        if known and known.size == member.size and known.mtime == member.mtime:
            member.type, member.linkname, member.size = tarfile.LNKTYPE, known.name, 0
            self._finish(entry, member, digest)
            return
        digest = self._add_content(entry, member, file)
        if entry.status.st_nlink > 1:
            self._linked[inode] = member, digest
        self._finish(entry, None, digest)

    def _add_content(self, entry: Entry, member: tarfile.TarInfo, file: IO[bytes]) -> str:
        """Add a file's content, without the holes in it; return its digest."""
        found, search = sparse.pieces(file.fileno(), entry.status), Search(self._barred)
        if found is None:
            content = _Exactly(entry, file, search)
            self._archive.add(member, content)
            return content.digest.hexdigest()
        place, packed = sparse.as_map(found, member.size), _member(entry)
        packed.pax_headers = sparse.headers(member.name, member.size)
        packed.size = len(place) + sum(length for _, length in found)
        self._archive.add(packed, _Pieces(place, entry, file, found, search))
        return SPARSE

    def _finish(self, entry: Entry, member: tarfile.TarInfo | None, digest: str = "") -> None:
        if member:
            self._archive.add(member)
        self._note(entry, digest)


def _member(entry: Entry) -> tarfile.TarInfo:
    member = tarfile.TarInfo(entry.name)
    member.mode = stat.S_IMODE(entry.status.st_mode) & 0o777
    member.mtime = int(entry.status.st_mtime)
    if stat.S_ISDIR(entry.status.st_mode):
        member.type = tarfile.DIRTYPE
    elif stat.S_ISLNK(entry.status.st_mode):
        member.type, member.linkname = tarfile.SYMTYPE, entry.target
    else:
        member.size = entry.status.st_size
    return member


class _Exactly:
    """A file that gives as many bytes as it is asked for, whatever it has. See Content."""

    def __init__(self, entry: Entry, file: IO[bytes], search: Search) -> None:
        self._entry, self._file, self._search = entry, file, search
        self.digest = hashlib.sha256()

    def read(self, size: int) -> bytes:
        data = _read(self._entry, self._file, size, self._search).ljust(size, b"\0")
        self.digest.update(data)
        return data


class _Pieces:
    """A map of where a file's data is, and after it that data. See Content."""

    def __init__(self, place: bytes, entry: Entry, file: IO[bytes], found: sparse.Pieces, search: Search) -> None:
        self._entry, self._file, self._search = entry, file, search
        self._read = itertools.chain([place], *(self._piece(*piece) for piece in found))
        self._rest = b""

    def _piece(self, start: int, length: int) -> Iterator[bytes]:
        self._file.seek(start)
        content = _Exactly(self._entry, self._file, self._search)
        for size in itertools.chain([CHUNK] * (length // CHUNK), [length % CHUNK]):
            yield content.read(size)

    def read(self, size: int) -> bytes:
        while len(self._rest) < size:
            self._rest += next(self._read)
        data, self._rest = self._rest[:size], self._rest[size:]
        return data


def copy(entry: Entry, out: Writer, *, note: Note = unnoted, barred: Secrets = NONE) -> None:
    """Write a single file as it is. Raises as ``pack`` does."""
    digest, search = hashlib.sha256(), Search(barred)
    try:
        entry, file = opened(entry)
    except OSError as error:
        raise unreadable(entry.path, error) from error
    with file:
        while data := _read(entry, file, CHUNK, search):
            digest.update(data)
            out.write(data)
    note(entry, digest.hexdigest())


def _read(entry: Entry, file: IO[bytes], size: int, search: Search) -> bytes:
    """Return so many bytes, fewer only at the end."""
    try:
        data = file.read(size)
        while 0 < len(data) < size and (more := file.read(size - len(data))):
            data += more
    except OSError as error:
        raise unreadable(entry.path, error) from error
    if search.found(data):
        raise _secret_in(entry)
    return data


def _secret_in(entry: Entry) -> ExperimentError:
    # A file's name may be the secret.
    return ExperimentError(
        f"a file of {Path(entry.root).name!r} holds a secret of the runner's own (a password, key or token of its "
        "queues or stores), and is not stored: the experiment must not copy what it finds on the machine",
        verdict="artifact",
    )
