"""Virtual environments, cached by content: the second attempt with the same requirement lists starts at once."""

from __future__ import annotations

import hashlib
import json
import os
import re
import shutil
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from importlib.metadata import Distribution, distributions
from pathlib import Path
from typing import Any

from runner.errors import ExperimentError, MachineError
from runner.locks import try_lock
from runner.sandbox import environment
from runner.sandbox.base import Job
from runner.sandbox.requirements import installable, normal_name

_READY = "ready.json"
"""Written last, in one step: an environment without it is a broken build, and is built again."""


class VirtualEnvironment:
    """A Sandbox: the interpreter that the request names, with its requirements, in an environment of its own."""

    def __init__(self, job: Job) -> None:
        self._job = job
        studioml = next(iter(sorted((job.place.workspace / "dist").glob("studioml-*.tar.gz"))), None)
        self._studioml = str(studioml) if studioml else ""
        self._lists = [installable(each, studioml=self._studioml) for each in (job.request.pythonenv, job.request.pip)]
        self._directory = job.place.home / "environments" / self._key()

    def _key(self) -> str:
        digest = hashlib.sha256()
        parts = [self._job.order.python, self._job.order.version]
        parts += [requirement for each in self._lists for requirement in ("", *sorted(each.requirements))]
        digest.update("\n".join(parts).encode())
        if self._studioml:
            digest.update(Path(self._studioml).read_bytes())
        return digest.hexdigest()[:32]

    def prepare(self) -> None:
        """Find the environment or build it; one attempt builds while others that want the same one wait."""
        if not self._ready.exists():
            with _locked(self._directory.with_suffix(".lock"), self._job.pause):
                if not self._ready.exists():
                    self._build()
        os.utime(self._ready)  # when it was used last

    @property
    def _ready(self) -> Path:
        return self._directory / _READY

    def _build(self) -> None:
        shutil.rmtree(self._directory, ignore_errors=True)
        self._make()
        for each in self._lists:
            for remark in each.remarks:
                self._job.say(remark)
            self._install(each.requirements)
        unfinished = self._directory / f".{_READY}"
        unfinished.write_text(json.dumps(installed(self._site_packages())))
        unfinished.replace(self._ready)

    def _make(self) -> None:
        order = self._job.order
        self._job.say(f"making a virtual environment with Python {order.version}")
        argv = [order.python, "-m", "venv", str(self._directory)]
        if self._job.run(argv, environment.for_installer(self._job, os.environ), self._job.place.root):
            raise MachineError(
                f"{order.python} cannot make virtual environments, its output says why (Debian: install python3-venv)"
            )

    def _install(self, requirements: Sequence[str]) -> None:
        if not requirements:
            return
        listed = self._job.place.scratch / "requirements.txt"
        listed.write_text("\n".join(requirements) + "\n")
        argv = [str(self._python), "-m", "pip", "install", "--no-input", "--disable-pip-version-check"]
        argv += ["--progress-bar", "off", "-r", str(listed)]
        status = self._job.run(argv, environment.for_installer(self._job, os.environ), self._job.place.workspace)
        if status:
            raise ExperimentError(
                f"the requirements could not be installed: pip ended with exit status {status}, its output says why"
            )

    def command(self) -> tuple[list[str], dict[str, str]]:
        """Return the experiment's argv and environment, for a start in the workspace."""
        request = self._job.request
        variables = environment.for_experiment(self._job, os.environ, self._python.parent)
        variables["VIRTUAL_ENV"] = str(self._directory)
        return [str(self._python), request.filename, *request.args], variables

    def packages(self) -> list[dict[str, Any]]:
        """Return what was installed when the environment was built."""
        listed: list[dict[str, Any]] = json.loads(self._ready.read_text())
        return listed

    @property
    def _python(self) -> Path:
        return self._directory / "bin" / "python"

    def _site_packages(self) -> str:
        return str(next(self._directory.glob("lib/python*/site-packages")))


def installed(site_packages: str) -> list[dict[str, Any]]:
    """List the packages of an environment and what each requires, in the form of ``pipdeptree --json``."""
    found = {normal_name(one.name): one for one in distributions(path=[site_packages])}
    return [{"package": _entry(one), "dependencies": _dependencies(one, found)} for _, one in sorted(found.items())]


def _entry(one: Distribution) -> dict[str, str]:
    return {"key": normal_name(one.name), "package_name": one.name, "installed_version": one.version}


def _dependencies(one: Distribution, found: dict[str, Distribution]) -> list[dict[str, str]]:
    # Conditional requirements count when they are installed: markers are not worth a dependency here.
    wanted = {normal_name(line): line for line in one.requires or ()}
    return [
        {**_entry(found[name]), "required_version": _specifier(line)}
        for name, line in sorted(wanted.items())
        if name in found
    ]


def _specifier(requirement: str) -> str:
    match = re.search(r"[<>=!~][^;)]*", requirement.partition(";")[0])
    return match[0].strip() if match else "Any"


@contextmanager
def _locked(path: Path, pause: Callable[[float], None]) -> Iterator[None]:
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w") as held:
        while not try_lock(held):
            pause(0.2)
        yield
