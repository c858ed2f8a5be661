"""Singularity containers: the image's own Python, and over its packages those that the message asks for."""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

from runner.errors import ExperimentError
from runner.sandbox import containers, environment, interpreters, layer
from runner.sandbox.base import Job
from runner.sandbox.building import Builder
from runner.sandbox.containers import Bind, Container
from runner.sandbox.environments import Environment, Environments
from runner.sandbox.images import Images, Python
from runner.sandbox.indexes import Indexes
from runner.sandbox.recipe import Recipe
from runner.sandbox.references import LABEL
from runner.sandbox.venv import Packages, installed, recipe_of
from runner.storage.stores import Stores

# Variables and settings of pip that name files of this machine; and settings that could only do harm inside.
_FILES = ("SSL_CERT_FILE", "SSL_CERT_DIR", "REQUESTS_CA_BUNDLE")
_FILE_SETTINGS = ("cert", "client-cert", "constraint", "find-links", "index-url", "extra-index-url")
_OUTSIDE = ("cache-dir", "config-file", "log", "src")
_PATH = re.compile(r"(?:(?<![^\s,])|(?<=file://))/[^\s,]+")


class Singularity:
    """A Sandbox: a container of the image that the request names, and in it an environment as VirtualEnvironment's.

    An image whose Python cannot make environments serves experiments that have no requirements. ``shared`` is the
    environment, None then; ``built`` if there was none; ``version`` is Python's, once it is prepared.
    """

    def __init__(self, job: Job, stores: Stores) -> None:
        self._job, self._own = job, job.place.scratch / "venv"
        self._program = containers.find(job.order.options.singularity)
        self._images = Images(job, self._program, stores)
        self.version = ""
        self.shared: Environment | None = None
        self.built = False

    def prepare(self) -> None:
        """Fetch the image, find the environment or build it, and lay the attempt's own over it."""
        self._image = self._images.use(self._job.request.artifacts[LABEL])
        self._python = self._chosen()
        self.version = self._python.version
        gpus = environment.for_experiment(self._job, {}, Path("/"))["CUDA_VISIBLE_DEVICES"] != "-1"
        self._container = Container(self._job, self._program, self._image.path, python=self._python.path, gpus=gpus)
        order = replace(self._job.order, python=self._python.path, version=self._python.version)
        recipe = replace(recipe_of(replace(self._job, order=order)), identity=self._image.digest)
        if self._python.venv:
            self._share(recipe)
        elif any(each.requirements for each in recipe.lists):
            raise ExperimentError(
                f"requirements cannot be installed: the image's Python {self._python.version} lacks the modules venv "
                "and ensurepip (Debian: install python3-venv in the image)"
            )
        self._container.confine(*([Bind(self.shared.content)] if self.shared else []))

    def command(self) -> tuple[list[str], dict[str, str]]:
        """Return argv and environment of the container; the experiment's own are in it."""
        request, programs = self._job.request, (self._own / "bin" if self.shared else Path(self._python.path).parent)
        allowed = {
            name: os.environ[name] for name in ("USER", *self._job.order.options.env_allow) if name in os.environ
        }
        known = {**allowed, **self._python.environ, "HOME": str(self._container.home)}
        variables = {**self._python.environ, **environment.for_experiment(self._job, known, programs)}
        if self.shared:
            variables["VIRTUAL_ENV"] = str(self._own)
        python = str(programs / "python") if self.shared else self._python.path
        return self._container.command([python, request.filename, *request.args], variables, self._job.place.workspace)

    def status(self, status: int) -> int:
        """See Sandbox. Raises MachineError when there was no container."""
        return self._container.status(status)

    def packages(self) -> Packages:
        """Return what was installed over the image's own packages."""
        return self.shared.about if self.shared else []

    def _chosen(self) -> Python:
        """Return the image's Python that the request names, or else its first one: who chose the image chose that."""
        pythons, wanted = self._image.pythons, interpreters.prefix(self._job.request.pythonver)
        if not pythons:
            raise ExperimentError("the image has no Python that works in its PATH", verdict="artifact")
        for each in pythons:
            if interpreters.prefix(each.version)[: len(wanted)] == wanted:
                return each
        self._job.say(f"the image has no Python {self._job.request.pythonver}: its Python {pythons[0].version} is used")
        return pythons[0]

    # The environment

    def _share(self, recipe: Recipe) -> None:
        indexes, files = self._indexes()
        environments = Environments(self._job.place.home, pause=self._job.pause)

        def build(venv: Path) -> Packages:
            self.built = True
            self._container.binds += [Bind(venv.parent, writable=True), *files]
            inside = replace(self._job, run=self._container.run)
            Builder(inside, recipe, indexes, options=["--system-site-packages"]).build(venv)
            return installed(str(layer.site_packages(venv)))

        self.shared = environments.use(recipe.key(indexes), build)
        if self.built:
            options = self._job.order.options
            environments.tidy(age=options.environments_age, size=options.environments_size)
        layer.lay(self.shared.content, self._own)

    def _indexes(self) -> tuple[Indexes, list[Bind]]:
        """Return this machine's settings of package indexes as variables that hold inside, and the files they name."""
        ours = Indexes.read(environment.for_installer(self._job, os.environ))
        settings = {name: value for name, value in ours.settings.items() if name not in _OUTSIDE}
        variables = {f"PIP_{name.replace('-', '_').upper()}": value for name, value in settings.items()}
        for name in set(ours.environ) - set(environment.harmless(os.environ)):
            if not name.startswith(("PIP_", "UV_")):
                variables[name] = ours.environ[name]
        named = [variables.get(name, "") for name in _FILES] + [settings.get(name, "") for name in _FILE_SETTINGS]
        inside: Mapping[str, str] = {**self._python.environ, **variables, "HOME": str(self._container.home)}
        return Indexes(settings, inside), [Bind(path) for path in _existing(named)]


def _existing(named: list[str]) -> list[Path]:
    found = {Path(path) for value in named for path in _PATH.findall(value)}
    return sorted(path for path in found if path.exists())
