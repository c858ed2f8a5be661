"""Container images on this machine's disk: each is fetched, or pulled and converted, once, and kept like environments.

A store is asked each time, with the message's own credentials, for the version of an object, and a registry for what
a name stands for.
"""

from __future__ import annotations

import hashlib
import json
import re
import secrets
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from runner.artifacts import cache
from runner.errors import ExperimentError, MachineError
from runner.machine.plain_files import end_of, new
from runner.message.request_artifacts import Artifact
from runner.sandbox import pulling
from runner.sandbox.base import Job
from runner.sandbox.containers import Container
from runner.sandbox.environments import Environment, Environments
from runner.sandbox.references import pulled
from runner.storage.base import CHUNK, NotFound, Reader
from runner.storage.stores import Stores

# Where SIF files have their magic number, and plain squashfs ones theirs.
_MAGIC = ((32, b"SIF_MAGIC\0"), (0, b"hsqs"))

# Lists the Pythons of an image, first those that come first in its PATH, a JSON object each.
_PROBE = r"""
exec >"$0"
IFS=:
for bin in $PATH; do
  for python in "$bin"/python "$bin"/python[0-9] "$bin"/python[0-9].[0-9] "$bin"/python[0-9].[0-9][0-9]; do
    [ ! -x "$python" ] || "$python" -c "$1" "$python"
  done
done
exit 0
"""
_QUESTION = r"""
import json, os, sys
try:
    import ensurepip, venv
except ImportError:
    venv = None
version = "%d.%d.%d" % sys.version_info[:3]
answer = {"path": sys.argv[1], "version": version, "venv": bool(venv), "environ": dict(os.environ)}
print("\n" + json.dumps(answer))
"""
# Of all Pythons of an image, in bytes.
_LONGEST_ANSWER = 16 * 1024 * 1024
# What singularity adds to an image's variables for its own purposes.
_OF_SINGULARITY = re.compile(r"(APPTAINER|SINGULARITY)_.*|PROMPT_COMMAND|PS1|PWD|OLDPWD|SHLVL|HOME|_")


@dataclass(frozen=True)
class Python:
    """A Python of an image, with the variables that the image sets. ``venv``: it can make virtual environments."""

    path: str
    version: str
    venv: bool
    environ: Mapping[str, str]


@dataclass(frozen=True)
class Image:
    """An image on the disk, in use for as long as its entry is open. ``digest`` is the SHA-256 of its file."""

    entry: Environment
    digest: str
    pythons: tuple[Python, ...]

    @property
    def path(self) -> Path:
        """The file."""
        return self.entry.content


class Images:
    """All images below a runner's root, for one attempt. ``program`` runs containers."""

    def __init__(self, job: Job, program: str, stores: Stores) -> None:
        self._job, self._program, self._stores = job, program, stores
        self._kept = Environments(job.place.home, "images", pause=job.pause)

    def use(self, artifact: Artifact) -> Image:
        """Return an image, fetched now if it is not there.

        Raises ExperimentError (there is none, or it is no image), Unavailable, MachineError (it cannot be run here).
        """
        if pulled(artifact):
            source = pulling.source(artifact)
            name, get = source.version, partial(pulling.pull, self._job, self._program, source)
        else:
            name, get = [str(artifact.location), self._etag(artifact), artifact.hash], partial(self._fetch, artifact)
        made = False

        def make(path: Path) -> dict[str, Any]:
            nonlocal made
            made = True
            self._job.say(f"fetching the image {name[0]}")
            get(path)
            return {"digest": _sha256(path, self._job.pause), "pythons": self._pythons(path)}

        entry = self._kept.use(hashlib.sha256(repr(name).encode(errors="surrogatepass")).hexdigest()[:32], make)
        if made:
            options = self._job.order.options
            self._kept.tidy(age=options.environments_age, size=options.environments_size)
        return Image(entry, entry.about["digest"], tuple(Python(**each) for each in entry.about["pythons"]))

    # From a store

    def _etag(self, artifact: Artifact) -> str:
        store = self._stores.reach(artifact.location, artifact.credentials)
        etag = store.etag(artifact.location.key)
        if etag is None:
            raise NotFound(f"the image {artifact.qualified} is missing", verdict="artifact")
        return etag or secrets.token_hex(16)  # it cannot be told from its later versions: nobody else may use it

    def _fetch(self, artifact: Artifact, path: Path) -> None:
        def receive(stream: Reader) -> None:
            with path.open("wb") as file:
                while data := stream.read(CHUNK):
                    file.write(data)
                    self._job.pause(0)

        store = self._stores.reach(artifact.location, artifact.credentials)
        try:
            self._stores.again(partial(cache.fetch, artifact, store, receive))
        except ExperimentError as error:
            raise ExperimentError(
                f"the image {artifact.qualified} cannot be fetched: {error}", verdict="artifact"
            ) from error
        except OSError as error:
            raise MachineError(f"the image {artifact.qualified} cannot be written: {error.strerror}") from error
        with path.open("rb") as file:
            start = file.read(64)
        if not any(start[at:].startswith(magic) for at, magic in _MAGIC):
            raise ExperimentError(
                f"{artifact.qualified} is no image that singularity could run: it is not a SIF file", verdict="artifact"
            )

    # What is in it

    def _pythons(self, image: Path) -> list[dict[str, Any]]:
        answer = self._job.place.scratch / "pythons"
        new(answer)
        container = Container(self._job, self._program, image)
        container.try_out(["/bin/sh", "-c", _PROBE, str(answer), _QUESTION])
        found = list(_answers(end_of(answer, _LONGEST_ANSWER).decode(errors="replace")))
        for each in found:
            kept = {name: value for name, value in each["environ"].items() if not _OF_SINGULARITY.fullmatch(name)}
            each["environ"] = kept
        return found


def _answers(said: str) -> Iterator[dict[str, Any]]:
    """Yield what Pythons answered, and not what else some of them print when they start."""
    for line in said.split("\n"):
        try:
            answer = json.loads(line)
        except ValueError:
            continue
        if isinstance(answer, dict) and answer.keys() == {"path", "version", "venv", "environ"}:
            yield answer


def _sha256(path: Path, pause: Callable[[float], None]) -> str:
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while data := file.read(CHUNK):
            digest.update(data)
            pause(0)
    return digest.hexdigest()
