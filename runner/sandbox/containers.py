"""Running programs in containers: what apptainer, or singularity, is told, and how to know what became of them.

Inside stands a launcher of ours, which the image's own Python runs. It sets exactly the variables that are wanted,
whatever their names, passes SIGTERM on once, writes down how the program ended, which the exit status of singularity
tells only in part, and ends everything when the attempt dies.
"""

from __future__ import annotations

import os
import secrets
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from runner.errors import MachineError
from runner.machine.plain_files import end_of, new
from runner.sandbox.base import Job

# For Python 2.7 and later. Arguments: the file of variables, which goes as a sign that the container runs; the program.
_LAUNCHER = """
import fcntl, os, select, signal, sys
path, argv = sys.argv[1], sys.argv[2:]
with open(path, "rb") as file:
    env = dict(each.split(b"=", 1) for each in file.read().split(b"\\0")[:-1])
os.unlink(path)
child = os.fork()
if not child:
    os.setsid()
    for ignored in (signal.SIGPIPE, signal.SIGXFSZ):  # by Python
        signal.signal(ignored, signal.SIG_DFL)
    try:
        os.execve(argv[0], argv, env)
    except OSError as error:
        os.write(2, ("%s: %s\\n" % (argv[0], error.strerror)).encode())
        os._exit(127)
def terminate(*_):
    signal.signal(signal.SIGTERM, signal.SIG_IGN)  # singularity may send it twice
    try:
        os.killpg(child, signal.SIGTERM)
    except OSError:
        os.kill(child, signal.SIGTERM)
def look():
    ended, status = os.waitpid(child, os.WNOHANG)
    if not ended:
        return
    status = -os.WTERMSIG(status) if os.WIFSIGNALED(status) else os.WEXITSTATUS(status)
    try:
        with open(path + ".status", "w") as file:
            file.write(str(status))
    finally:
        os._exit(status if status >= 0 else 128 - status)
reader, writer = os.pipe()  # wakes the poll, also by a signal that comes just before it
for end in (reader, writer):
    fcntl.fcntl(end, fcntl.F_SETFL, os.O_NONBLOCK)
signal.set_wakeup_fd(writer)
signal.signal(signal.SIGTERM, terminate)
signal.signal(signal.SIGCHLD, lambda *_: None)
events = select.poll()
events.register(reader, select.POLLIN)
events.register(1, 0)
while True:
    look()
    try:
        ready = [fd for fd, _ in events.poll()]
    except select.error:  # a signal, in Python 2
        continue
    if 1 in ready:
        os._exit(137)  # nobody reads the output any more, for the attempt is dead; everything here ends with this
    os.read(reader, 4096)
"""

# What a shell adds to a signal's number to make an exit status.
_BY_SIGNAL = 128

# So much of singularity's complaints is looked at: the end. In bytes.
_LONGEST_LOG = 64 * 1024


def find(wanted: str) -> str:
    """Return the path of the program for ``--singularity``: ``auto``, or the path itself. Raises MachineError."""
    found = (shutil.which("apptainer") or shutil.which("singularity")) if wanted == "auto" else shutil.which(wanted)
    if not found:
        looked = "it has neither apptainer nor singularity in PATH" if wanted == "auto" else f"there is no {wanted}"
        raise MachineError(
            f"this machine cannot run containers, for {looked}: install Apptainer, or give --singularity"
        )
    return found


@dataclass(frozen=True)
class Bind:
    """A file or directory of the host that is seen inside, at the same path."""

    path: Path
    writable: bool = False

    @property
    def option(self) -> list[str]:
        """Return it as words for singularity, whatever characters the path has."""
        path = str(self.path).replace('"', '""')
        access = "" if self.writable else ",ro"
        return ["--mount", f'type=bind,"source={path}","destination={path}"{access}']


class Container:
    """Runs programs of one attempt in containers of one image. Nothing of the host is seen inside but ``binds``.

    The attempt's own directory is always one of them; home and /tmp lie in it. ``python`` is the launcher's, in the
    image. ``gpus``: the host's GPUs and their driver are there, too. Raises MachineError where singularity cannot take
    the directory's name.
    """

    def __init__(self, job: Job, program: str, image: Path, *, python: str = "", gpus: bool = False) -> None:
        self._job, self._program, self._image, self._python, self._gpus = job, program, image, python, gpus
        self._told = job.place.scratch / "launch"
        self._variables = self._told
        for directory in (self.home, self._temporary, self._told):
            directory.mkdir(parents=True, exist_ok=True)
        if ":" in str(self.home):
            raise MachineError(f"{job.place.home} has a colon in it, which containers cannot have: see --working-dir")
        # Installers write there, and what they install is as little to be trusted as the experiment.
        self.binds = self._places(runners_own=True)

    @property
    def home(self) -> Path:
        """The home directory, inside and outside."""
        return self._job.place.scratch / "home"

    @property
    def _temporary(self) -> Path:
        return self._job.place.scratch / "container"

    def confine(self, *more: Bind) -> None:
        """Leave nothing to an experiment with which it could lead the runner astray, once it reads or writes there."""
        self.binds = [*self._places(runners_own=False), *more]

    def _places(self, *, runners_own: bool) -> list[Bind]:
        """Return the attempt's directories, which cannot be replaced by links when they are bound one by one.

        ``runners_own``: the runner's can be written to, not only some in it.
        """
        place = self._job.place
        labels = [path for path in sorted(place.root.iterdir()) if _is_directory(path) and path != place.scratch]
        own = [place.scratch / "tmp", place.scratch / "venv", self.home, self._told]
        own += [self._temporary] if runners_own else []
        return [
            *(Bind(path, writable=True) for path in (place.root, *labels)),
            Bind(place.scratch, writable=runners_own),
            *(Bind(path, writable=True) for path in own if _is_directory(path)),
        ]

    def run(self, argv: Sequence[str], env: Mapping[str, str], cwd: Path) -> int:
        """See sandbox.base.Run. Raises MachineError when there is no container."""
        return self.status(self._job.run(*self.command(argv, env, cwd), Path("/")))

    def try_out(self, argv: Sequence[str]) -> None:
        """Run a program of an image of which nothing is known, in the variables that the image sets.

        Raises MachineError with what singularity says when it does not end well.
        """
        complaint = run_noted(self._job, [*self._exec(Path("/")), *argv], self._outside)
        if complaint:
            raise MachineError(f"{self._program} cannot start a container of the image: {complaint}")

    def command(self, argv: Sequence[str], env: Mapping[str, str], cwd: Path) -> tuple[list[str], dict[str, str]]:
        """Return argv and environment of a program outside that runs this one inside."""
        self._variables = self._told / secrets.token_hex(8)  # which nobody inside can have put there
        self._variables.touch(mode=0o600, exist_ok=False)
        self._variables.write_bytes(b"".join(os.fsencode(f"{name}={value}") + b"\0" for name, value in env.items()))
        return [*self._exec(cwd), self._python, "-S", "-c", _LAUNCHER, str(self._variables), *argv], self._outside

    def status(self, status: int) -> int:
        """Return how the program inside ended, by how the one outside did. Raises MachineError if it never began."""
        if self._variables.exists():
            self._variables.unlink()
            raise MachineError(f"{self._program} cannot start a container any more (exit status {status})")
        try:
            return int(_first_bytes(self._variables.with_name(f"{self._variables.name}.status")))
        except (OSError, ValueError):  # the launcher was killed
            return _BY_SIGNAL - status if status > _BY_SIGNAL else status

    def _exec(self, cwd: Path) -> list[str]:
        words = [self._program, "--silent", "exec", "--containall", "--pid", "--pwd", str(cwd)]
        words += ["--home", str(self.home), "--workdir", str(self._temporary)]
        if os.geteuid() == 0:
            # Root may write to /proc/sys, which is the host's, even without capabilities.
            words += ["--no-privs", "--bind", "/proc/sys:/proc/sys:ro"]
        words += ["--nv"] if self._gpus else []
        return [*words, *(word for bind in self.binds for word in bind.option), str(self._image)]

    @property
    def _outside(self) -> dict[str, str]:
        return for_program(self._job)


def run_noted(job: Job, argv: Sequence[str], env: Mapping[str, str]) -> str:
    """Run singularity's program to its end, and return its last complaint, "" when it ended well."""
    noted = job.place.scratch / "singularity.log"
    new(noted)
    status = job.run(["/bin/sh", "-c", 'exec 2>"$0"; exec "$@"', str(noted), *argv], env, Path("/"))
    if not status:
        return ""
    said = end_of(noted, _LONGEST_LOG).decode(errors="replace").strip().splitlines()
    return said[-1].removeprefix("FATAL:").strip() if said else f"exit status {status}"


def for_program(job: Job, **more: str) -> dict[str, str]:
    """Return the variables that the program outside sees: none of those that would change what it does."""
    kept = {name: os.environ[name] for name in ("PATH", "HOME", "USER", "LANG") if name in os.environ}
    marks = {"STUDIOML_EXPERIMENT": job.place.name, "STUDIOML_HOME": str(job.place.home)}
    return {**kept, **marks, **more}


def _is_directory(path: Path) -> bool:
    return path.is_dir() and not path.is_symlink()


def _first_bytes(path: Path) -> bytes:
    """Read a short file that may be anything, and may be meant to keep us waiting."""
    descriptor = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK)
    try:
        return os.read(descriptor, 10)
    finally:
        os.close(descriptor)
