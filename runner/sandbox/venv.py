"""Virtual environments: a shared one, cached by content, and over it a thin one of the attempt's own."""

from __future__ import annotations

import os
import re
from collections.abc import Iterable
from importlib.metadata import Distribution, distributions
from pathlib import Path
from typing import Any

from runner.machine.users import give, take_back
from runner.sandbox import environment, layer
from runner.sandbox.base import Job, user_of
from runner.sandbox.building import Builder, find_uv
from runner.sandbox.environments import Environment, Environments
from runner.sandbox.indexes import Indexes
from runner.sandbox.recipe import Recipe, identity, located
from runner.sandbox.requirements import Installable, installable, normal_name

Packages = list[dict[str, Any]]


class VirtualEnvironment:
    """A Sandbox: the interpreter that the request names, with its requirements, in an environment of its own.

    ``version`` is the interpreter's, ``shared`` the environment below it, in use by this process from ``prepare`` on;
    ``built`` if there was none.
    """

    def __init__(self, job: Job) -> None:
        self._job = job
        self._user = user_of(job.order)
        self._own = job.place.scratch / "venv"
        self._recipe = recipe_of(job)
        self._indexes = Indexes.read(environment.for_installer(job, os.environ))
        self.version = self._recipe.version
        self.shared: Environment | None = None
        self.built = False

    def prepare(self) -> None:
        """Find the shared environment or build it, and lay the attempt's own over it."""
        options = self._job.order.options
        environments = Environments(self._job.place.home, pause=self._job.pause)
        self.shared = environments.use(self._recipe.key(self._indexes), self._build)
        if self.built:
            environments.tidy(age=options.environments_age, size=options.environments_size)
        layer.lay(self.shared.content, self._own)
        if self._user:
            give(self._own, self._user)

    def _build(self, venv: Path) -> Packages:
        self.built = True
        builder = Builder(self._job, self._recipe, self._indexes, uv=find_uv(self._job.order.options.uv))
        builder.build(venv)
        if self._user:
            take_back(venv)
        return installed(str(layer.site_packages(venv)))

    def command(self) -> tuple[list[str], dict[str, str]]:
        """Return the experiment's argv and environment, for a start in the workspace."""
        request, programs = self._job.request, self._own / "bin"
        variables = environment.for_experiment(self._job, os.environ, programs)
        variables["VIRTUAL_ENV"] = str(self._own)
        return [str(programs / "python"), request.filename, *request.args], variables

    def status(self, status: int) -> int:
        """See Sandbox."""
        return status

    def packages(self) -> Packages:
        """Return what was installed when the environment was built."""
        return self.shared.about if self.shared else []


def recipe_of(job: Job) -> Recipe:
    """Say what a job's environment is made of (protocol section 5)."""
    workspace = job.place.workspace
    studioml = _newest(path.name for path in (workspace / "dist").glob("studioml-*.tar.gz"))
    lists: list[Installable] = []
    paths: list[Path] = []
    for lines in (job.request.pythonenv, job.request.pip):
        made = installable(
            lines, studioml=studioml and f"dist/{studioml}", gpu_python=job.order.version if job.order.gpus else ""
        )
        requirements, local = located(made.requirements, workspace)
        lists.append(Installable(requirements, made.remarks))
        paths += local
    python = job.order.python
    return Recipe(python, job.order.version, identity(python), tuple(lists), tuple(paths))


def _newest(names: Iterable[str]) -> str:
    """Return the package of the newest version, "" if there is none.

    It becomes a line for pip, and whoever packed the workspace could name a file like more than one line.
    """
    plain = (name for name in names if re.fullmatch(r"[A-Za-z0-9._+!-]+", name))
    return max(plain, key=lambda name: ([int(number) for number in re.findall(r"\d+", name)], name), default="")


def installed(site_packages: str) -> list[dict[str, Any]]:
    """List the packages of an environment and what each requires, in the form of ``pipdeptree --json``."""
    found = {name: one for one in distributions(path=[site_packages]) if (name := _name(one))}
    return [{"package": _entry(one), "dependencies": _dependencies(one, found)} for _, one in sorted(found.items())]


def _name(one: Distribution) -> str:
    """Return a package's name, "" where a wheel has brought metadata that nobody can read."""
    try:
        return normal_name(_field(one, "Name"))
    except UnicodeDecodeError:
        return ""


def _entry(one: Distribution) -> dict[str, str]:
    name = _field(one, "Name")
    return {"key": normal_name(name), "package_name": name, "installed_version": _field(one, "Version")}


def _field(one: Distribution, name: str) -> str:
    return next(iter(one.metadata.get_all(name) or ()), "")


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
