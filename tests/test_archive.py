"""Archives: hostile ones harm nothing, real ones unpack, and what is packed can be unpacked."""

from __future__ import annotations

import bz2
import gzip
import io
import lzma
import os
import subprocess
import sys
import tarfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from runner.artifacts import sparse, tar_reading, tar_writing, unpacking, walking
from runner.artifacts.budget import Budget
from runner.artifacts.packing import copy, pack
from runner.artifacts.unpacking import unpack
from runner.artifacts.walking import Entry, members, only, opened
from runner.errors import ExperimentError, MachineError, Unavailable
from runner.message.archive_names import compression_of, is_archive_name
from runner.place import remove
from tests.servers.disk import small_disk

OBJECTS = Path(__file__).parent / "vectors" / "objects" / "cl-data"


class Drip:
    """A stream that gives little at a time, as networks do."""

    def __init__(self, data: bytes, most: int = 1000) -> None:
        self._stream, self._most = io.BytesIO(data), most
        self.ended = False

    def read(self, size: int = -1, /) -> bytes:
        data = self._stream.read(self._most if size < 0 else min(size, self._most))
        self.ended = not data
        return data


def tar(*members: tuple[str, dict[str, Any]], content: bytes = b"", **options: Any) -> bytes:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w", **options) as made:
        for name, fields in members:
            member = tarfile.TarInfo(name)
            for field, value in fields.items():
                setattr(member, field, value)
            made.addfile(member, io.BytesIO(content.ljust(member.size, b"x")))
    return buffer.getvalue()


def tree(directory: Path) -> dict[str, bytes | None]:
    return {
        path.relative_to(directory).as_posix(): path.read_bytes() if path.is_file() else None
        for path in sorted(directory.rglob("*"))
    }


def test_names_tell_archives_and_how_to_write_them() -> None:
    kinds = {"a.tar": "", "a.tar.gz": "gz", "a.tgz": "bz2", "a.tar.bz2": "bz2", "a.tar.bzip2": "bz2", "a.tbz": "bz2"}
    kinds["A.TBZ2"] = "bz2"
    for name, kind in kinds.items():
        assert is_archive_name(name)
        assert compression_of(name) == kind
    assert not any(map(is_archive_name, ["a", "a.gz", "a.tar.xz.txt", "tar"]))


@pytest.mark.parametrize("path", sorted(OBJECTS.rglob("*.tar*")), ids=lambda path: path.name[:12])
def test_real_clients_archives_unpack(tmp_path: Path, path: Path) -> None:
    unpack(Drip(path.read_bytes()), tmp_path, Budget(None))
    with tarfile.open(path) as stored:
        wanted = {member.name.removeprefix("./") for member in stored}
    assert set(tree(tmp_path)) == wanted


@pytest.mark.parametrize("squeeze", [bytes, gzip.compress, bz2.compress, lzma.compress])
def test_content_tells_the_compression_and_the_stream_is_read_to_its_end(
    tmp_path: Path, squeeze: Callable[[bytes], bytes]
) -> None:
    stream = Drip(squeeze(tar(("sub/file", {"size": 5, "mode": 0o6754, "mtime": 1_000_000}))))
    unpack(stream, tmp_path, Budget(None))
    assert stream.ended
    made = (tmp_path / "sub" / "file").stat()
    assert (made.st_mode & 0o7777, made.st_mtime) == (0o754, 1_000_000)


def test_several_compressed_streams_in_a_row_are_one(tmp_path: Path) -> None:
    whole = tar(("file", {"size": 5000}))
    for squeeze in (gzip.compress, bz2.compress):
        unpack(Drip(squeeze(whole[:700]) + squeeze(whole[700:])), tmp_path, Budget(None))
        assert len((tmp_path / "file").read_bytes()) == 5000


LINK = {"type": tarfile.SYMTYPE}
HARD = {"type": tarfile.LNKTYPE}
HOSTILE = {
    "absolute": [("/tmp/evil", {})],
    "dots": [("a/../../evil", {})],
    "dots in the end": [("a/..", {})],
    "symlink to an absolute path": [("a", {**LINK, "linkname": "/tmp"})],
    "symlink out": [("a/b", {**LINK, "linkname": "../../evil"})],
    "symlink that goes up later": [("x", {**LINK, "linkname": "."}), ("a", {**LINK, "linkname": "x/x/../../evil"})],
    "file through a symlink": [("a", {**LINK, "linkname": "b"}), ("a/evil", {})],
    "hard link out": [("a", {**HARD, "linkname": "../canary"})],
    "hard link to an absolute path": [("a", {**HARD, "linkname": "/etc/passwd"})],
    "hard link to nothing": [("a", {**HARD, "linkname": "b"})],
    "hard link through a symlink": [("l", {**LINK, "linkname": "."}), ("f", {}), ("a", {**HARD, "linkname": "l/f"})],
    "hard link to a symlink": [("l", {**LINK, "linkname": "f"}), ("a", {**HARD, "linkname": "l"})],
    "character device": [("a", {"type": tarfile.CHRTYPE})],
    "block device": [("a", {"type": tarfile.BLKTYPE})],
    "pipe": [("a", {"type": tarfile.FIFOTYPE})],
    "deeper than anybody needs": [("d/" * 257 + "f", {})],
    "file over a directory": [("a/b", {}), ("a", {})],
    "directory over a file": [("a", {}), ("a", {"type": tarfile.DIRTYPE})],
    "file below a file": [("a", {}), ("a/b", {})],
}


@pytest.mark.parametrize("kind", HOSTILE)
def test_a_hostile_archive_is_refused_in_one_sentence_and_touches_nothing(tmp_path: Path, kind: str) -> None:
    (tmp_path / "canary").write_text("alive")
    inside = tmp_path / "inside"
    inside.mkdir()
    with pytest.raises(ExperimentError, match="is refused, because its member"):
        unpack(Drip(tar(*HOSTILE[kind])), inside, Budget(None))
    assert {path.name for path in tmp_path.iterdir()} == {"canary", "inside"}
    assert (tmp_path / "canary").read_text() == "alive"
    assert (tmp_path / "canary").stat().st_nlink == 1


def test_links_that_stay_inside_are_kept(tmp_path: Path) -> None:
    members = [("d/f", {"size": 3}), ("d/l", {**LINK, "linkname": "../d/./f"}), ("h", {**HARD, "linkname": "d/f"})]
    unpack(Drip(tar(*members)), tmp_path, Budget(None))
    assert (tmp_path / "d" / "l").read_bytes() == (tmp_path / "h").read_bytes() == b"xxx"
    assert (tmp_path / "d" / "l").readlink() == Path("../d/./f")


def test_the_last_of_several_members_of_one_name_counts(tmp_path: Path) -> None:
    outside = tmp_path / "canary"
    outside.write_text("alive")
    inside = tmp_path / "inside"
    inside.mkdir()
    unpack(Drip(tar(("a", {**LINK, "linkname": "b"}), ("a", {"size": 2}), ("a", {"size": 3}))), inside, Budget(None))
    assert tree(inside) == {"a": b"xxx"}


@pytest.mark.parametrize("squeeze", [bytes, gzip.compress, bz2.compress, lzma.compress])
def test_a_cut_archive_is_told(tmp_path: Path, squeeze: Callable[[bytes], bytes]) -> None:
    data = squeeze(tar(("a", {"size": 100_000}), content=os.urandom(100_000)))
    with pytest.raises(ExperimentError, match="damaged"):
        unpack(Drip(data[: len(data) // 2]), tmp_path, Budget(None))


@pytest.mark.parametrize(
    "data", [b"", b"hello" * 500, gzip.compress(b"hello", mtime=0), b"\x1f\x8b" + b"?" * 50, b"BZh9" + b"?" * 50]
)
def test_what_is_no_archive_is_told(tmp_path: Path, data: bytes) -> None:
    with pytest.raises(ExperimentError, match="damaged or is none"):
        unpack(Drip(data), tmp_path, Budget(None))


def test_a_break_of_the_store_stays_one(tmp_path: Path) -> None:
    class Breaking(Drip):
        def read(self, size: int = -1, /) -> bytes:
            if data := super().read(size):
                return data
            raise Unavailable("cut")

    for data in (tar(("a", {"size": 5000}))[:3000], tar(("a", {"size": 5000}))):
        with pytest.raises(Unavailable):
            unpack(Breaking(data), tmp_path, Budget(None))


def test_the_budget_counts_files_and_members_before_they_are_written(tmp_path: Path) -> None:
    data = tar(("a", {"size": 5000}), ("b", {"size": 5000}))
    unpack(Drip(data), tmp_path, Budget(12_000))
    with pytest.raises(ExperimentError, match="hdd"):
        unpack(Drip(data), tmp_path, Budget(10_000))
    with pytest.raises(ExperimentError, match="hdd"):
        unpack(Drip(tar(*[(f"{i}", {}) for i in range(100)])), tmp_path, Budget(10_000))


def peak(code: str, *arguments: object) -> float:
    """Run code in a process of its own; return by how many MiB its memory has grown at most since the marked line."""
    script = "import resource, sys, pathlib\nfrom tests.test_archive import *\n"
    script += "before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss\n" + code
    script += "\nprint((resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) / 1024)"
    root = Path(__file__).parent.parent
    done = subprocess.run(
        [sys.executable, "-c", script, *map(str, arguments)], cwd=root, capture_output=True, text=True, check=True
    )
    return float(done.stdout)


class Endless:
    """A tar stream of one member of zeros, made up as it is read."""

    def __init__(self, size: int) -> None:
        member = tarfile.TarInfo("zeros")
        member.size = size
        self._pieces = self._all(member)
        self._rest = b""

    @staticmethod
    def _all(member: tarfile.TarInfo) -> Iterator[bytes]:
        yield member.tobuf()
        for _ in range(member.size // 65536):
            yield bytes(65536)
        yield bytes(1024)

    def read(self, size: int = -1, /) -> bytes:
        self._rest = self._rest or next(self._pieces, b"")
        data, self._rest = self._rest[:size], self._rest[size:]
        return data


def test_memory_is_flat_while_unpacking_and_packing(tmp_path: Path) -> None:
    code = """
directory = pathlib.Path(sys.argv[1])
unpack(Endless(200 * 2**20), directory, Budget(None))
class Null:
    def write(self, data): return len(data)
pack(directory, Null(), "x.tar")
"""
    assert peak(code, tmp_path) < 20


@pytest.mark.parametrize("module", ["gzip", "bz2", "lzma"])
def test_a_bomb_meets_its_budget_and_not_the_memory(tmp_path: Path, module: str) -> None:
    bomb = tmp_path / "bomb"
    squeezed = __import__(module)
    with squeezed.open(bomb, "wb") as file:
        source = Endless(300 * 2**20)
        while data := source.read(65536):
            file.write(data)
    inside = tmp_path / "inside"
    inside.mkdir()
    code = """
try:
    unpack(open(sys.argv[1], "rb"), pathlib.Path(sys.argv[2]), Budget(10**7))
except ExperimentError as error:
    assert "hdd" in str(error)
else:
    raise SystemExit("no error")
"""
    assert peak(code, bomb, inside) < 30
    assert sum(path.stat().st_size for path in inside.iterdir()) <= 10**7


def pax(*records: tuple[bytes, bytes], kind: bytes = tarfile.XHDTYPE) -> bytes:
    """A PAX header as an attacker writes it: tarfile would not."""
    body = b""
    for key, value in records:
        size = len(key) + len(value) + 3
        body += b"%d %s=%s\n" % (size + len(str(size + len(str(size)))), key, value)
    return header("pax", type=kind, size=len(body)) + body + bytes(-len(body) % 512)


def header(name: str, **fields: Any) -> bytes:
    member = tarfile.TarInfo(name)
    for field, value in fields.items():
        setattr(member, field, value)
    return member.tobuf(tarfile.GNU_FORMAT)


def sparse_map(blocks: int) -> bytes:
    """A member of the old GNU kind whose map goes on and on."""
    head = bytearray(header("x", type=tarfile.GNUTYPE_SPARSE))
    head[482] = 1
    head[148:156] = b" " * 8
    head[148:156] = b"%06o\0 " % sum(head)
    return bytes(head) + (b"%011o\0" % 1 * 42 + b"\1" + bytes(7)) * blocks


END = bytes(1024)
NEWER_SPARSE = pax((b"GNU.sparse.major", b"1"), (b"GNU.sparse.minor", b"0")) + header("x", size=512)
# Made when they are asked for: the process that is measured imports this module.
ENDLESS: dict[str, Callable[[], bytes]] = {
    "map of a sparse file": lambda: sparse_map(100_000),
    "map of a sparse file, newer": lambda: NEWER_SPARSE + b"999999999\n" + b"1\n" * 25_000_000,
    "global headers": lambda: b"".join(
        pax((b"k%d" % i, b"v" * 500_000), kind=tarfile.XGLTYPE) + header(f"{i}") for i in range(100)
    ),
    "zeros after the end": lambda: header("x") + bytes(50_000_000),
    "the root again and again": lambda: header("./", type=tarfile.DIRTYPE) * 100_000 + b"?" * 512,
}


@pytest.mark.parametrize("kind", ENDLESS)
def test_headers_without_an_end_do_not_fill_the_memory(tmp_path: Path, kind: str) -> None:
    archive = tmp_path / "archive"
    archive.write_bytes(ENDLESS[kind]())
    inside = tmp_path / "inside"
    inside.mkdir()
    code = """
try:
    unpack(open(sys.argv[1], "rb"), pathlib.Path(sys.argv[2]), Budget(None))
except ExperimentError:
    pass
else:
    raise SystemExit("no error")
"""
    assert peak(code, archive, inside) < 30


DAMAGED = {
    "headers for headers": pax((b"comment", b"x")) * 2000 + header("x") + END,
    "text in a map of a sparse file": pax((b"GNU.sparse.map", b"a,b")) + header("x") + END,
    "text as the size of a sparse file": pax((b"GNU.sparse.size", b"a")) + header("x") + END,
    "no map of a sparse file": NEWER_SPARSE + b"?" * 512 + END,
    "negative size": pax((b"size", b"-1024")) + header("x") + header("y") + END,
    "a damaged second header": header("x") + b"?" * 512 + header("y") + END,
    "cut in the second header": header("x") + header("y")[:300],
    "cut after a member": header("x"),
}


@pytest.mark.parametrize("kind", DAMAGED)
def test_damage_between_members_is_told_as_such(tmp_path: Path, kind: str) -> None:
    with pytest.raises(ExperimentError, match="damaged"):
        unpack(Drip(DAMAGED[kind]), tmp_path, Budget(None))


IMPOSSIBLE = {
    "link with NUL": pax((b"linkpath", b"a\0b")) + header("x", type=tarfile.SYMTYPE, linkname="a"),
    "link too long": pax((b"linkpath", b"a/" * 2500)) + header("x", type=tarfile.SYMTYPE, linkname="a"),
    "file name too long": pax((b"path", b"a" * 256)) + header("x"),
    "path too long": pax((b"path", b"a/" * 2500 + b"b")) + header("x"),
}


@pytest.mark.parametrize("kind", IMPOSSIBLE)
def test_names_that_no_disk_can_hold_are_refused(tmp_path: Path, kind: str) -> None:
    with pytest.raises(ExperimentError, match="is refused, because its member"):
        unpack(Drip(IMPOSSIBLE[kind] + END), tmp_path, Budget(None))
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(("mtime", "kept"), [(b"inf", 2**32), (b"nan", 0), (b"-5", 0), (b"1e300", 2**32)])
def test_odd_times_are_brought_into_range(tmp_path: Path, mtime: bytes, kept: int) -> None:
    unpack(Drip(pax((b"mtime", mtime)) + header("x") + END), tmp_path, Budget(None))
    assert (tmp_path / "x").stat().st_mtime == kept


def test_directories_that_only_names_imply_count_too(tmp_path: Path) -> None:
    with pytest.raises(ExperimentError, match="hdd"):
        unpack(Drip(tar(("a/" * 40 + "x", {}))), tmp_path, Budget(10_000))


def test_sparse_files_unpack(tmp_path: Path) -> None:
    head = bytearray(header("x", type=tarfile.GNUTYPE_SPARSE, size=3))
    head[386:410] = b"%011o\0%011o\0" % (5, 3)
    head[483:495] = b"%011o\0" % 10
    head[148:156] = b" " * 8
    head[148:156] = b"%06o\0 " % sum(head)
    unpack(Drip(bytes(head) + b"abc".ljust(512, b"\0") + END), tmp_path, Budget(None))
    assert (tmp_path / "x").read_bytes() == bytes(5) + b"abc" + bytes(2)


@pytest.mark.parametrize("by", ["us", "GNU tar"])
def test_holes_stay_holes(tmp_path: Path, by: str) -> None:
    source, copy = tmp_path / "source", tmp_path / "copy"
    source.mkdir()
    copy.mkdir()
    with (source / "data.mdb").open("wb") as file:
        file.seek(5_000_000)
        file.write(b"begin")
        file.seek(2**40)
        file.write(b"end")
        file.truncate(2**41)
    (source / "hole").touch()
    os.truncate(source / "hole", 2**30)
    (source / "later").write_bytes(b"after the holes")
    if by == "us":
        made = packed(source)
    else:
        made = subprocess.run(["tar", "cS", "-C", source, "."], stdout=subprocess.PIPE, check=True).stdout
    assert len(made) < 50_000
    unpack(Drip(made), copy, Budget(100_000))
    assert [path.stat().st_size for path in sorted(copy.iterdir())] == [2**41, 2**30, 15]
    assert sum(path.stat().st_blocks * 512 for path in copy.iterdir()) < 100_000
    with (copy / "data.mdb").open("rb") as file:
        file.seek(5_000_000 - 1)
        assert file.read(7) == b"\0begin\0"
        file.seek(2**40)
        assert file.read(5) == b"end\0\0"


def test_a_sparse_file_that_grows_before_its_holes_are_found_keeps_its_size(tmp_path: Path) -> None:
    with (tmp_path / "file").open("w+b") as file:
        file.truncate(4_000_000)
        before = os.fstat(file.fileno())
        file.seek(8_000_000)
        file.write(b"more")
        file.flush()
        assert sparse.pieces(file.fileno(), before) == []


def test_a_sparse_file_of_two_names_is_packed_once(tmp_path: Path) -> None:
    source, copy = tmp_path / "source", tmp_path / "copy"
    source.mkdir()
    copy.mkdir()
    (source / "a").touch()
    os.truncate(source / "a", 2**30)
    os.link(source / "a", source / "b")
    unpack(Drip(packed(source)), copy, Budget(100_000))
    assert (copy / "a").stat().st_size == 2**30
    assert (copy / "a").samefile(copy / "b")


def test_gnu_tar_reads_our_holes(tmp_path: Path) -> None:
    source, copy = tmp_path / "source", tmp_path / "copy"
    source.mkdir()
    copy.mkdir()
    name = os.fsdecode(b"m\xfcll.mdb")
    (source / name).touch()
    os.truncate(source / name, 2**40)
    subprocess.run(["tar", "x", "-C", copy], input=packed(source), check=True)
    assert [(path.name, path.stat().st_size) for path in copy.iterdir()] == [(name, 2**40)]


@pytest.mark.parametrize(
    "piece", ["9223372036854775000\n5", "-5\n5", "5\n-5", "99999999999999999999999\n1", "5\n5\n0\n5"]
)
def test_maps_of_sparse_files_that_lie_are_damage(tmp_path: Path, piece: str) -> None:
    place = f"{piece.count(chr(10)) // 2 + 1}\n{piece}\n".encode().ljust(512, b"\0")
    head = pax((b"GNU.sparse.major", b"1"), (b"GNU.sparse.minor", b"0"), (b"GNU.sparse.realsize", b"1000"))
    with pytest.raises(ExperimentError, match="damaged or is none: a file's size or its holes cannot be"):
        unpack(Drip(head + header("x", size=1024) + place + bytes(512) + END), tmp_path, Budget(None))


def test_a_file_that_seems_larger_than_any_disk_is_refused(tmp_path: Path) -> None:
    head = pax((b"GNU.sparse.major", b"1"), (b"GNU.sparse.minor", b"0"), (b"GNU.sparse.realsize", b"%d" % 2**60))
    place = b"1\n0\n0\n".ljust(512, b"\0")
    with pytest.raises(ExperimentError, match="is larger than any disk"):
        unpack(Drip(head + header("x", size=512) + place + END), tmp_path, Budget(None))


def test_a_header_that_wants_gigabytes_is_refused(tmp_path: Path) -> None:
    member = tarfile.TarInfo("x")
    member.type, member.size = tarfile.XHDTYPE, 5 * 2**30
    with pytest.raises(ExperimentError, match="damaged"):
        unpack(Drip(member.tobuf(tarfile.GNU_FORMAT) + bytes(10**6), most=10**6), tmp_path, Budget(None))


NAMES = st.text(st.characters(exclude_characters="/\0", exclude_categories=()), min_size=1, max_size=120)


@given(
    name=NAMES,
    target=NAMES,
    size=st.integers(0, 2**40),
    mtime=st.integers(-5, 2**40),
    mode=st.integers(0, 0o777),
    kind=st.sampled_from([tarfile.REGTYPE, tarfile.DIRTYPE, tarfile.SYMTYPE, tarfile.LNKTYPE]),
)
def test_headers_are_those_of_tarfile(name: str, target: str, size: int, mtime: int, mode: int, kind: bytes) -> None:
    member = tarfile.TarInfo(name.encode("utf-8", "surrogatepass").decode("utf-8", "surrogateescape"))
    member.size = size if kind == tarfile.REGTYPE else 0
    member.mtime, member.mode, member.type = mtime, mode, kind
    if kind in (tarfile.SYMTYPE, tarfile.LNKTYPE):
        member.linkname = target.encode("utf-8", "surrogatepass").decode("utf-8", "surrogateescape")
    assert tar_writing.header(member) == member.tobuf(tarfile.GNU_FORMAT, "utf-8", "surrogateescape")


FIELDS = ("name", "linkname", "type", "mode", "size", "mtime")


@given(
    name=NAMES,
    kind=st.sampled_from([*(bytes([each]) for each in b"01234567xgLKS"), b"\0", b"?"]),
    numbers=st.tuples(st.integers(0, 0o777), st.integers(0, 2**40), st.integers(-5, 2**40)),
    form=st.sampled_from([tarfile.USTAR_FORMAT, tarfile.GNU_FORMAT]),
    changes=st.lists(
        st.tuples(st.sampled_from([*range(108), *range(124, 160), 345, 500]), st.integers(0, 255)), max_size=4
    ),
    corrected=st.booleans(),
)
def test_headers_are_read_as_tarfile_reads_them(
    name: str,
    kind: bytes,
    numbers: tuple[int, int, int],
    form: Any,
    changes: list[tuple[int, int]],
    corrected: bool,
) -> None:
    def read(how: type[tarfile.TarInfo]) -> list[object]:
        try:
            member = how.frombuf(bytes(header), "utf-8", "surrogateescape")
        except tarfile.TarError as error:
            return [type(error)]
        return [getattr(member, field) for field in FIELDS]

    member = tarfile.TarInfo(name.encode("utf-8", "surrogatepass")[:90].decode("utf-8", "surrogateescape"))
    member.type, (member.mode, member.size, member.mtime) = kind, numbers
    if form == tarfile.USTAR_FORMAT:
        member.size, member.mtime = member.size % 2**33, abs(member.mtime) % 2**33
    header = bytearray(member.tobuf(form, "utf-8", "surrogateescape"))
    for place, value in changes:
        header[place] = value
    if corrected:
        header[148:156] = b"%06o\0 " % (256 + sum(header) - sum(header[148:156]))
    assert read(tar_reading.Member) == read(tarfile.TarInfo)


def packed(directory: Path, name: str = "x.tar", first: str = "") -> bytes:
    out = io.BytesIO()
    pack(directory, out, name, first=first)
    return out.getvalue()


def test_a_file_that_comes_in_pieces_is_packed_whole(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    class Pieces(io.FileIO):
        """As network file systems may give them."""

        def read(self, size: int | None = -1, /) -> bytes:
            return super().read(min(size or 0, 1000))

    monkeypatch.setattr(walking, "FileIO", Pieces)
    content = os.urandom(5500)
    (tmp_path / "file").write_bytes(content)
    with tarfile.open(fileobj=io.BytesIO(packed(tmp_path))) as archive:
        assert archive.extractfile("file").read() == content  # type: ignore[union-attr]


@pytest.mark.parametrize("name", ["x.tar", "x.tar.gz", "x.tgz", "x.tar.bz2"])
def test_what_is_packed_comes_out_as_it_was(tmp_path: Path, name: str) -> None:
    source, copy = tmp_path / "source", tmp_path / "copy"
    (source / "deep" / "er").mkdir(parents=True)
    (source / "empty").mkdir()
    (source / ("long" * 60)).write_bytes(b"long")
    (source / os.fsdecode(b"bytes-\xff-\xc3\xa9")).write_bytes(b"odd")
    (source / "deep" / "er" / "tool").write_bytes(b"#!")
    (source / "deep" / "er" / "tool").chmod(0o755)
    (source / "deep" / "link").symlink_to("er/tool")
    (source / "notes (deleted)").write_text("a copy that a file manager has named so")
    (source / "old (deleted)").mkdir()
    (source / "old (deleted)" / "file").write_text("there")
    os.mkfifo(source / "pipe")
    copy.mkdir()
    data = packed(source, name)
    assert {b"\x1f\x8b": "gz", b"BZ": "bz2"}.get(data[:2], "") == compression_of(name)
    unpack(Drip(data), copy, Budget(None))
    wanted = tree(source)
    del wanted["pipe"]
    assert tree(copy) == wanted
    assert (copy / "deep" / "er" / "tool").stat().st_mode & 0o777 == 0o755
    assert (copy / "deep" / "link").is_symlink()


def test_members_have_plain_names_and_the_log_comes_first(tmp_path: Path) -> None:
    for name in ("a", "output", "z"):
        (tmp_path / name).write_text(name)
    (tmp_path / "sub").mkdir()
    (tmp_path / "sub" / "file").touch()
    with tarfile.open(fileobj=io.BytesIO(packed(tmp_path, first="output"))) as made:
        assert made.getnames() == ["output", "a", "sub", "sub/file", "z"]
        assert {(member.uid, member.gid, member.uname) for member in made} == {(0, 0, "")}


def test_files_that_change_while_they_are_packed_spoil_nothing(tmp_path: Path) -> None:
    for name in ("grows", "last", "shrinks", "vanishes"):
        (tmp_path / name).write_bytes(b"x" * 3_000_000)

    class Meddling(io.BytesIO):
        def write(self, data: Any) -> int:
            with (tmp_path / "grows").open("ab") as file:
                file.write(b"more")
            os.truncate(tmp_path / "shrinks", 10)
            (tmp_path / "vanishes").unlink(missing_ok=True)
            return super().write(data)

    out = Meddling()
    pack(tmp_path, out, "x.tar")
    out.seek(0)
    with tarfile.open(fileobj=out) as made:
        contents = {member.name: made.extractfile(member).read() for member in made}  # type: ignore[union-attr]
    assert set(contents) == {"grows", "last", "shrinks"}
    assert contents["last"] == b"x" * 3_000_000
    assert contents["grows"].startswith(b"x" * 3_000_000)
    assert contents["shrinks"].startswith(b"x" * 10)


def test_a_store_that_breaks_is_not_written_to_any_more(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(bytes(2_000_000))

    class Broken:
        calls = 0

        def write(self, data: bytes, /) -> int:
            self.calls += 1
            raise Unavailable("broken")

    out = Broken()
    with pytest.raises(Unavailable, match="broken"):
        pack(tmp_path, out, "x.tar")
    assert out.calls == 1


def test_many_small_files_are_no_trouble(tmp_path: Path) -> None:
    source, copy = tmp_path / "source", tmp_path / "copy"
    source.mkdir()
    copy.mkdir()
    for number in range(3000):
        (source / f"{number:05}").write_bytes(b"%d" % number)
    unpack(io.BytesIO(packed(source)), copy, Budget(None))
    assert tree(copy) == tree(source)


def test_more_members_than_anybody_needs_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(unpacking, "_MOST_MEMBERS", 10)
    with pytest.raises(ExperimentError, match="more than 10 members"):
        unpack(Drip(tar(*[(f"{i}", {}) for i in range(11)])), tmp_path, Budget(None))


def test_directories_deeper_than_pythons_stack_are_stored_and_removed(tmp_path: Path) -> None:
    here = tmp_path / "top"
    here.mkdir()
    deepest = here.joinpath(*["d"] * 1100)
    subprocess.run(["mkdir", "-p", deepest], check=True)
    (deepest / "file").write_bytes(b"xxx")
    with tarfile.open(fileobj=io.BytesIO(packed(here))) as made:
        assert sum(1 for _ in made) == 1101
    remove(here)  # pytest's own cleaning is not up to it
    assert not list(tmp_path.iterdir())


def test_a_tree_whose_names_are_too_long_to_be_read_is_told_and_removed(tmp_path: Path) -> None:
    here = tmp_path / "top"
    here.mkdir()
    code = "import os\nfor _ in range(30):\n    os.mkdir('d' * 200)\n    os.chdir('d' * 200)\nopen('file', 'w').close()"
    subprocess.run([sys.executable, "-c", code], cwd=here, check=True)
    with pytest.raises(ExperimentError, match="cannot be read"):
        packed(here)
    remove(here)
    assert not list(tmp_path.iterdir())


def test_a_single_file_is_copied_and_never_through_a_link(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"data")
    (tmp_path / "link").symlink_to("file")
    out = io.BytesIO()
    (entry,) = only(tmp_path, "file")
    copy(entry, out)
    assert out.getvalue() == b"data"
    for name in ("link", "missing"):
        assert not list(only(tmp_path, name))
    (tmp_path / "file").unlink()
    (tmp_path / "file").symlink_to("/etc/passwd")
    with pytest.raises(ExperimentError, match="cannot be read"):
        copy(entry, out)


def test_files_with_several_names_are_packed_once(tmp_path: Path) -> None:
    source, target = tmp_path / "source", tmp_path / "target"
    for directory in (source / "sub", target):
        directory.mkdir(parents=True)
    (source / "a").write_bytes(b"x" * 100_000)
    (source / "sub" / "b").hardlink_to(source / "a")
    data = packed(source)
    assert len(data) < 150_000
    unpack(Drip(data), target, Budget(None))
    assert tree(target) == tree(source)
    assert (target / "a").samefile(target / "sub" / "b")


def test_links_are_packed_as_they_can_be_unpacked(tmp_path: Path) -> None:
    """Programs like to write links to full paths, such as that to their latest checkpoint."""
    source, copy = tmp_path / "source", tmp_path / "copy"
    (source / "run" / "1").mkdir(parents=True)
    (source / "run" / "1" / "model").write_bytes(b"weights")
    (source / "latest").symlink_to(source / "run" / "1")
    (source / "run" / "best").symlink_to(source / "run" / ".." / "latest" / "model")
    (source / "run" / "all").symlink_to(source)
    (source / "data").symlink_to("/mnt/data")
    (source / "code").symlink_to("../workspace")
    (source / "sourcecode").symlink_to(tmp_path / "sourcecode")
    copy.mkdir()
    noted: list[str] = []
    out = io.BytesIO()
    pack(source, out, "x.tar", note=lambda entry, _digest: noted.append(entry.name))
    unpack(Drip(out.getvalue()), copy, Budget(None))
    links = {str(path.relative_to(copy)): str(path.readlink()) for path in copy.rglob("*") if path.is_symlink()}
    assert links == {"latest": "run/1", "run/best": "../latest/model", "run/all": ".."}
    assert (copy / "run" / "best").read_bytes() == b"weights"
    assert noted == [entry.name for entry in members(source)], "or it would be stored again and again"


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can give directories to others")
def test_another_users_file_that_an_experiment_has_linked_to_is_not_packed(tmp_path: Path) -> None:
    """Not every kernel keeps users from making hard links to what they cannot read."""
    label = tmp_path / "label"
    label.mkdir()
    for name in ("file", "other (deleted)", "../secret"):
        (label / name).write_text("")
    (label / "linked").hardlink_to(tmp_path / "secret")
    for path in (label, label / "file"):
        os.chown(path, 65534, 65534)
    with tarfile.open(fileobj=io.BytesIO(packed(label))) as made:
        assert made.getnames() == ["file", "other (deleted)"]


def test_what_a_link_leads_to_is_not_packed_in_a_directorys_place(tmp_path: Path) -> None:
    """An experiment can exchange its directories for links while they are walked through."""
    source, outside = tmp_path / "source", tmp_path / "outside"
    for directory in (source / "sub", outside):
        directory.mkdir(parents=True)
        (directory / "file").write_bytes(directory.name.encode())
    walk = members(source)
    assert [next(walk).name, next(walk).name] == ["sub", "sub/file"]
    (source / "sub").rename(tmp_path / "moved")
    (source / "sub").symlink_to(outside)
    assert not list(walk)
    entry = Entry(str(source), "sub/file", (outside / "file").stat())
    with pytest.raises(FileNotFoundError):
        opened(entry)
    with tarfile.open(fileobj=io.BytesIO(packed(source))) as made:
        assert not made.getnames()
    (tmp_path / "link").symlink_to(outside)
    assert not list(members(tmp_path / "link"))


@pytest.mark.parametrize(
    "make", [Path.mkdir, os.mkfifo, lambda path: path.symlink_to("/etc/passwd"), lambda _path: None]
)
def test_a_file_that_has_become_something_else_is_gone(tmp_path: Path, make: Callable[[Path], object]) -> None:
    (tmp_path / "file").write_bytes(b"data")
    (entry,) = members(tmp_path)
    (tmp_path / "file").unlink()
    make(tmp_path / "file")
    before = os.listdir("/proc/self/fd")
    with pytest.raises(FileNotFoundError):
        opened(entry)
    assert os.listdir("/proc/self/fd") == before


def test_an_archive_does_not_get_all_the_memory_that_it_asks_for(tmp_path: Path) -> None:
    def squeezed(dictionary: int) -> Drip:
        options = {"id": lzma.FILTER_LZMA2, "dict_size": dictionary, "mode": lzma.MODE_FAST, "mf": lzma.MF_HC3}
        return Drip(lzma.compress(tar(("file", {"size": 1000})), filters=[options]))

    with pytest.raises(ExperimentError, match="Memory usage limit exceeded"):
        unpack(squeezed(2**28), tmp_path, Budget(None))
    as_xz_9_does = 2**26
    unpack(squeezed(as_xz_9_does), tmp_path, Budget(None))
    assert (tmp_path / "file").stat().st_size == 1000


def test_a_full_disk_is_the_machines_fault(tmp_path: Path) -> None:
    with small_disk(tmp_path, "64k"), pytest.raises(MachineError, match="No space left"):
        unpack(Drip(tar(("a", {"size": 500_000}))), tmp_path, Budget(None))


def test_an_archive_that_says_that_a_member_is_endless_takes_no_time(tmp_path: Path) -> None:
    """A sparse file of nothing, whose 2**80 bytes in the archive tarfile would skip by reading 2**62 times."""
    header = bytearray(tar(("file", {"type": tarfile.GNUTYPE_SPARSE}), format=tarfile.GNU_FORMAT)[:512])
    header[124:136] = b"\x80" + (2**80).to_bytes(11, "big")
    header[148:156] = b" " * 8
    header[148:156] = b"%06o\0 " % sum(header)
    with pytest.raises(ExperimentError, match="it ends in the middle"):
        unpack(Drip(bytes(header) + b"\0" * 4096), tmp_path, Budget(None))
