"""An artifact of 100,000 files: fetched, changed and stored again, in no more memory than one of a few."""

from __future__ import annotations

import os
import subprocess
import sys
import tarfile
from pathlib import Path

NUMBER = 100_000

# In a process of its own, for its memory. It prints what was uploaded each time, and MiB that it has grown by.
ATTEMPT = """
import sys, time
from pathlib import Path
from runner.artifacts.artifacts import Artifacts
from runner.artifacts.budget import Budget
from runner.message.request import Artifact
from runner.place import placed
from runner.storage.base import Location, StoreOptions
from runner.storage.stores import Stores

def peak():
    return next(int(line.split()[1]) for line in open("/proc/self/status") if line.startswith("VmHWM")) / 1024

store, home = sys.argv[1:]
before = peak()
location = Location("file", "", store, "m.tar")
artifact = Artifact("modeldir", location, True, True, "", None, str(location))
stores = Stores(StoreOptions(file_roots=(store,)), sleep=time.sleep)
with placed(Path(home), "key", keep=False) as place:
    artifacts = Artifacts([artifact], place, Budget(None))
    artifacts.fetch(artifact, stores, lambda: None)
    print(artifacts.upload(stores))
    (place.label("modeldir") / "500" / "50").write_text("changed")
    print(artifacts.upload(stores))
    print(artifacts.upload(stores))
print(peak() - before)
"""


def test_an_artifact_of_very_many_files_takes_no_more_memory(tmp_path: Path) -> None:
    (tmp_path / "store").mkdir()
    stored = tmp_path / "store" / "m.tar"
    with stored.open("wb") as file:
        for each in range(NUMBER):
            member = tarfile.TarInfo(f"{each // 100}/{each % 100}")
            member.size = 1
            file.write(member.tobuf() + b"x".ljust(tarfile.BLOCKSIZE, b"\0"))
        file.write(bytes(2 * tarfile.BLOCKSIZE))
    told = subprocess.run(
        [sys.executable, "-c", ATTEMPT, str(tmp_path / "store"), str(tmp_path / "home")],
        env={**os.environ, "PYTHONPATH": str(Path(__file__).parent.parent)},
        stdout=subprocess.PIPE,
        check=True,
    ).stdout.split()
    assert [int(count) for count in told[:3]] == [0, 1, 0]
    assert float(told[3]) < 20, "MiB"
    with tarfile.open(stored) as archive:
        files = {member.name: member.size for member in archive if member.isfile()}
    assert len(files) == NUMBER
    assert files["500/50"] == len("changed")
