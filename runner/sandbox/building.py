"""Building a virtual environment: with uv where it can, with pip where it cannot; pip has the last word on failures."""

from __future__ import annotations

import os
import re
import shutil
from collections.abc import Sequence
from contextlib import suppress
from itertools import chain, repeat
from pathlib import Path

from runner import retry
from runner.errors import MachineError, RequirementError
from runner.machine.plain_files import end_of, new
from runner.machine.users import give, own_home
from runner.place import remove
from runner.retry import Patience
from runner.sandbox import complaints
from runner.sandbox.base import Job, user_of
from runner.sandbox.indexes import Indexes
from runner.sandbox.layer import site_packages
from runner.sandbox.recipe import Recipe
from runner.sandbox.requirements import Installable, normal_name

# The oldest Python that uv works for.
_OLDEST_OF_UV = (3, 8)
# The first pip that knows the wheels of today (manylinux2014, and by name and version of the C library).
_MODERN_PIP = (20, 3)

# So much of what installers write is looked at: its end. In bytes.
_LONGEST_LOG = 4 * 1024 * 1024

# What pip is told by variables: no pip has all of them as options. A "user" install is none into an environment.
_OUR_SETTINGS = {"PIP_USER": "0", "PIP_PROGRESS_BAR": "off"}

# Where installers run. uv takes settings from files in all directories above, and "-m" puts this on the module path.
_NOWHERE = Path("/")

# Writes to a file which wheels Python's own installer of pip has with it; Debian has them elsewhere, or not at all.
_BUNDLED = """
import glob, os, sys, sysconfig
try:
    import ensurepip
    places = [sysconfig.get_config_var("WHEEL_PKG_DIR"), os.path.join(os.path.dirname(ensurepip.__file__), "_bundled")]
except ImportError:
    places = []
names = ["pip", "setuptools"] if sys.version_info < (3, 12) else ["pip"]
found = [glob.glob(os.path.join(place, name + "-*.whl"))[-1:] for place in places[::-1] if place for name in names]
with open(sys.argv[1], "w") as file:
    file.write("\\n".join(sum(found, [])[:len(names)] or names))
"""


class Builder:
    """Carries a recipe out. All programs run through ``job.run``, which may as well run them in a container.

    ``uv`` is its path, "" for pip alone. ``options`` are for Python's venv.
    """

    def __init__(
        self, job: Job, recipe: Recipe, indexes: Indexes, *, uv: str = "", options: Sequence[str] = ()
    ) -> None:
        self._job, self._recipe, self._indexes, self._uv, self._options = job, recipe, indexes, uv, options
        self._user = user_of(job.order)
        self._patience = Patience(job.order.options.index_patience, first=1.0)

    def build(self, venv: Path) -> None:
        """Make an environment at a path where nothing is yet.

        Raises RequirementError, Unavailable when an index does not answer for long, MachineError.
        """
        for remark in [remark for each in self._recipe.lists for remark in each.remarks]:
            self._job.say(remark)
        if not (self._uv and self._suits_uv() and self._with_uv(venv)):
            self._make(venv)
            self.install(venv)

    def _make(self, venv: Path, *options: str) -> None:
        self._job.say(f"making a virtual environment with Python {self._recipe.version}")
        venv.mkdir()
        if self._user:
            give(venv, self._user)
        argv = [self._recipe.python, "-m", "venv", *self._options, *options, str(venv)]
        if self._job.run(argv, self._indexes.environ, _NOWHERE):
            raise MachineError(
                f"{self._recipe.python} cannot make virtual environments, its output says why "
                "(Debian: install python3-venv)"
            )

    # With pip

    def install(self, venv: Path) -> None:
        """Install the recipe's lists with pip, into an environment that is made already. Raises as ``build``."""
        if _pip_version(venv) < _MODERN_PIP:
            wanted = [line for line in self._recipe.lists[0].requirements if normal_name(line) == "pip"]
            with suppress(RequirementError):  # the old one has to do
                self._install(venv, "--upgrade", *(wanted or ["pip"]))
        for each in self._recipe.lists:
            if each.requirements:
                self._install(venv, "-r", str(self._listed(each)))
        if (venv / "src").exists():  # checkouts of editable packages: others are compiled by pip
            argv = [str(venv / "bin" / "python"), "-m", "compileall", "-q", str(venv / "src")]
            self._job.run(argv, self._indexes.environ, _NOWHERE)

    def _install(self, venv: Path, *words: str) -> None:
        # What pip has in its cache may be what a proxy damaged: it is asked only once.
        caching = chain([()], repeat(("--no-cache-dir",)))
        mismatch = ("", "")

        def once() -> None:
            nonlocal mismatch
            if status := self._pip(venv, *next(caching), *words):
                said = end_of(self._log, _LONGEST_LOG).decode(errors="replace")
                before, mismatch = mismatch, complaints.mismatch(said)
                if before == mismatch and self._is_given(mismatch[0]):
                    raise RequirementError(
                        "the requirements cannot be installed: of a file whose hash the message gives as "
                        f"{mismatch[0]}, the hash is {mismatch[1]}"
                    )
                raise complaints.error(status, said)

        retry.call(once, self._patience, sleep=self._job.pause)

    def _is_given(self, digest: str) -> bool:
        """Tell whether a hash is the message's own: others come from indexes."""
        return bool(digest) and any(digest in line for each in self._recipe.lists for line in each.requirements)

    def _pip(self, venv: Path, *words: str) -> int:
        argv = [str(venv / "bin" / "python"), "-m", "pip", "install", "--no-input", "--disable-pip-version-check"]
        self._blank(self._log)
        # Against settings of the operator's: what is not compiled before it is sealed, is altered by its first use.
        argv += ["--compile", "--src", str(venv / "src"), "--log", str(self._log), *words]
        return self._job.run(argv, {**self._indexes.environ, **_OUR_SETTINGS}, _NOWHERE)

    def _blank(self, path: Path) -> None:
        """Make an empty file of ours that installers can write to, and not replace."""
        new(path)
        if self._user:
            os.chown(path, self._user.uid, self._user.gid)

    @property
    def _log(self) -> Path:
        return self._job.place.scratch / "pip.log"

    def _listed(self, each: Installable) -> Path:
        path = self._job.place.scratch / f"requirements-{self._recipe.lists.index(each) + 1}.txt"
        new(path, "".join(f"{line}\n" for line in each.requirements).encode())
        if self._user:
            path.chmod(0o644)
        return path

    # With uv

    def _suits_uv(self) -> bool:
        """Tell whether uv would do the same as pip, as far as that is known beforehand."""
        lines = [line for each in self._recipe.lists for line in each.requirements]
        if tuple(int(part) for part in self._recipe.version.split(".")[:2]) < _OLDEST_OF_UV:
            return False
        if any(line.startswith("-") for line in lines):
            return False  # it does not install editable packages from git
        if unknown := self._indexes.only_pips():
            self._job.say(f"pip is used, since uv does not know its settings {', '.join(unknown)}")
        return not unknown

    def _with_uv(self, venv: Path) -> bool:
        """Build it as pip would; false, and nothing left, when uv cannot, whatever the reason."""
        self._make(venv, "--without-pip")
        runs = [
            self._seed(venv),
            *(["-r", str(self._listed(each))] for each in self._recipe.lists if each.requirements),
        ]
        # As pip does; but everything at once, in the end.
        runs[-1].append("--compile-bytecode")
        if all(self._run_uv(venv, *words) for words in runs):
            return True
        self._job.say("uv cannot do it: pip is used instead")
        remove(venv)
        return False

    def _seed(self, venv: Path) -> list[str]:
        """Return uv's words for pip, and what else Python's own installer of it would bring, from where it has it."""
        bundled = self._job.place.scratch / "bundled.txt"
        self._blank(bundled)
        argv = [str(venv / "bin" / "python"), "-c", _BUNDLED, str(bundled)]
        if self._job.run(argv, self._indexes.environ, _NOWHERE):
            raise MachineError(f"{self._recipe.python} does not work, its output says why")
        wheels = end_of(bundled, _LONGEST_LOG).decode(errors="replace").split("\n")
        return [*wheels, *(["--no-index"] if all(map(os.path.isabs, wheels)) else [])]

    def _run_uv(self, venv: Path, *words: str) -> bool:
        argv = [self._uv, "pip", "install", "--python", str(venv / "bin" / "python"), *self._indexes.options_for_uv()]
        # Links would let experiments write into uv's cache; and pip asks all indexes for the best.
        argv += ["--link-mode", "copy", "--index-strategy", "unsafe-best-match", "--no-progress", "--color", "never"]
        return not self._job.run([*argv, *words], self._indexes.variables_for_uv(), _NOWHERE)


def find_uv(wanted: str) -> str:
    """Return uv's path for ``--uv``: ``auto``, ``never``, or the path itself; "" when it is not to be used."""
    if wanted != "auto":
        return "" if wanted == "never" else wanted
    return shutil.which("uv") or shutil.which(own_home() / ".local" / "bin" / "uv") or ""


def _pip_version(venv: Path) -> tuple[int, ...]:
    """Return the version of the pip that an environment has, (0,) without one."""
    names = [path.name for path in site_packages(venv).glob("pip-*.dist-info")]
    match = re.match(r"pip-(\d+)\.(\d+)", names[0]) if names else None
    return (int(match[1]), int(match[2])) if match else (0,)
