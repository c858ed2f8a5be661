"""A runner as its users start it, a local store and queue for it, and messages as clients write them."""

from __future__ import annotations

import io
import json
import os
import re
import signal
import subprocess
import sys
import tarfile
import time
import urllib.request
from collections.abc import Callable
from pathlib import Path
from typing import Any
from urllib.error import HTTPError


def until(true: Callable[[], Any], what: str, seconds: float = 60.0) -> Any:
    """Wait for something, and return it."""
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        if found := true():
            return found
        time.sleep(0.05)
    raise AssertionError(f"not within {seconds:g} s: {what}")


# Metrics and pages at an address that nobody else has.
WATCHED = ("--prom-address", "127.0.0.1:0")


class Runner:
    """One studio-runner process and its log."""

    def __init__(self, program: list[str], options: list[str], log: Path, env: dict[str, str]) -> None:
        self.log_path = log
        self._file = log.open("wb")
        self.process = subprocess.Popen([*program, *options], stdout=self._file, stderr=self._file, env=env, cwd="/")

    @property
    def log(self) -> str:
        return self.log_path.read_text(errors="replace")

    def saw(self, text: str, seconds: float = 60.0) -> str:
        """Wait for a line of the log that has ``text`` in it, and return it."""

        def line() -> str:
            assert self.process.poll() is None or text in self.log, f"the runner is gone:\n{self.log}"
            return next((line for line in self.log.splitlines() if text in line), "")

        try:
            return until(line, text, seconds)
        except AssertionError as error:
            raise AssertionError(f"{error}\n{self.log}") from None

    def page(self, path: str) -> tuple[int, str]:
        """Ask it for a page, by HTTP, until it has time to answer; it has to be started with ``WATCHED``."""
        found = re.search(r": http://(\S+)/$", self.saw(": http://"))
        assert found
        url = f"http://{found[1]}{path}"
        return until(lambda: (told := self._asked(url))[1] != "the runner's loop is busy\n" and told, "it answers")

    def _asked(self, url: str) -> tuple[int, str]:
        try:
            with urllib.request.urlopen(url, timeout=20) as answer:
                return answer.status, answer.read().decode()
        except HTTPError as error:
            with error:
                return error.code, error.read().decode()

    def series(self, name: str) -> dict[str, float]:
        """Return the values of a metric, by their labels as they are written."""
        lines = re.findall(rf"^{name}(?:\{{(.*)\}})? (\S+)$", self.page("/metrics")[1], re.MULTILINE)
        return {labels: float(value) for labels, value in lines}

    def stop(self, number: int = signal.SIGTERM, seconds: float = 60.0) -> int:
        if self.process.poll() is None:
            self.process.send_signal(number)
        return self.ended(seconds)

    def ended(self, seconds: float = 60.0) -> int:
        try:
            return self.process.wait(seconds)
        finally:
            self._file.close()

    def close(self) -> None:
        if self.process.poll() is None:
            self.process.kill()
            self.process.wait()
        self._file.close()


class Workplace:
    """A directory queue, a directory store, and a way to start runners on them."""

    def __init__(self, root: Path, working: Path, program: list[str]) -> None:
        self.root, self.working, self.program = root, working, program
        self.queues, self.store = root / "queues", root / "store"
        (self.queues / "local_test").mkdir(parents=True)
        self.store.mkdir()
        self.runners: list[Runner] = []

    @property
    def env(self) -> dict[str, str]:
        """What a user's shell has, and no more; STUDIO_RUNNER_ROOT keeps the unpacked program out of the home."""
        kept = ("PATH", "HOME", "LANG", "PYENV_ROOT", "STUDIO_TESTS_COVERAGE")
        ours = {name: value for name, value in os.environ.items() if name in kept or name.startswith("PIP_")}
        return {**ours, "STUDIO_RUNNER_ROOT": str(self.working / "unpacked")}

    def start(
        self, *options: str, env: dict[str, str] | None = None, local: bool = True, watched: bool = False
    ) -> Runner:
        """Start a runner, with the local queues unless it has others, and with metrics only if it is ``watched``."""
        given = ["--working-dir", str(self.working), "--clear-text-messages", "--file-root", str(self.store)]
        if not watched:
            given += ["--prom-address="]
        if local:
            given += ["--queue-root", str(self.queues)]
        log = self.root / f"runner-{len(self.runners)}.log"
        runner = Runner(self.program, [*given, *options], log, {**self.env, **(env or {})})
        self.runners.append(runner)
        return runner

    def submit(self, *words: str, env: dict[str, str] | None = None) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [*self.program, "submit", *words],
            env={**self.env, **(env or {})},
            capture_output=True,
            text=True,
            timeout=120,
            cwd=self.root,
            check=False,
        )

    def publish(self, body: bytes | dict[str, Any], name: str = "message") -> Path:
        data = body if isinstance(body, bytes) else json.dumps(body).encode()
        path = self.queues / "local_test" / name
        path.with_name(f".{name}").write_bytes(data)
        path.with_name(f".{name}").replace(path)
        return path

    @property
    def waiting(self) -> list[str]:
        return sorted(path.name for path in (self.queues / "local_test").iterdir() if not path.name.startswith("."))

    def settled(self, seconds: float = 60.0) -> None:
        """Wait until the queue is empty."""
        until(lambda: not self.waiting, f"the queue is empty; it has {self.waiting}", seconds)

    def message(self, script: str, key: str = "demo", **members: Any) -> dict[str, Any]:
        """Store a workspace of one script, and return the message of an experiment that runs it."""
        blob = f"blobstore/{key}.tar"
        put(self.store / blob, archive({"main.py": script.encode()}))
        artifacts = {"workspace": self.artifact(blob, mutable=False)}
        for label in ("output", "modeldir", "_metadata"):
            artifacts[label] = self.artifact(f"experiments/{key}/{label}.tar", mutable=True)
        version = f"{sys.version_info[0]}.{sys.version_info[1]}"
        experiment = {
            "key": key,
            "filename": "main.py",
            "args": [],
            "pythonver": version,
            "pythonenv": [],
            "project": "tests",
            "artifacts": artifacts,
            "resources_needed": {"cpus": 1, "ram": "64mb", "hdd": "50mb", "gpus": 0},
            "time_added": time.time(),
        }
        config = {"saveWorkspaceFrequency": "1m", "env": {}}
        return {"experiment": {**experiment, **members}, "config": config}

    def artifact(self, key: str, *, mutable: bool) -> dict[str, Any]:
        return {"qualified": f"file://{self.store}/{key}", "key": key, "mutable": mutable, "unpack": True}

    def result(self, label: str = "output", name: str = "output", key: str = "demo") -> bytes:
        """Return one file of a stored result."""
        with tarfile.open(self.store / "experiments" / key / f"{label}.tar") as stored:
            member = stored.extractfile(name)
            assert member is not None
            return member.read()

    def output(self, key: str = "demo") -> str:
        return self.result(key=key).decode()

    def metadata(self) -> dict[str, Any]:
        """Return the newest metadata document."""
        newest = max((self.store / "metadata").glob("scrape-host-*.json"), key=lambda path: path.stat().st_mtime_ns)
        return json.loads(newest.read_text())

    def experiments(self) -> list[int]:
        """List the processes of experiments that run here."""
        return processes(f"STUDIOML_HOME={self.working}/studio-runner")

    def close(self) -> None:
        for runner in self.runners:
            runner.close()


def archive(files: dict[str, bytes]) -> bytes:
    """Pack files as clients do: a plain tar without directories."""
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as tar:
        for name, data in files.items():
            member = tarfile.TarInfo(name)
            member.size = len(data)
            tar.addfile(member, io.BytesIO(data))
    return buffer.getvalue()


def put(path: Path, data: bytes) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(data)


def processes(mark: str) -> list[int]:
    """List the processes whose environment or command line has ``mark`` in it, ourselves left out."""
    found = []
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit() and int(entry.name) != os.getpid():
            try:
                text = (entry / "environ").read_bytes() + (entry / "cmdline").read_bytes()
            except OSError:
                continue
            if mark.encode() in text:
                found.append(int(entry.name))
    return found
