"""What runs first of the built file, as its ``__main__.py``: unpack the program, once, and start it.

Python loads no compiled modules out of a file, and no others fast. All that is imported here costs every start, and
nothing of the program can be.
"""

import os
import sys

if sys.version_info < (3, 10):  # nothing above may be newer than Python 3.6
    raise SystemExit(
        "studio-runner: this is Python %d.%d, but 3.10 or newer is needed: start it with python3.NN studio-runner.pyz"
        % sys.version_info[:2]
    )

import errno
import fcntl
import stat
import time
from collections.abc import Iterator
from contextlib import suppress

BUILD = ""
"""The program's version and a hash of all that it is; build_zipapp.py fills it in."""

INSIDE = "site-packages/"
"""Where the modules are, in the file."""

PROGRAM = "runner/cli.py"
"""What every unpacked program has."""

NAMED = "STUDIO_RUNNER_ROOT"
"""The variable that names the directory to unpack to."""

# Seconds after which an unpacked program is removed that nobody has started meanwhile.
_UNUSED = 30 * 86400


def main() -> int:
    """Start the program; return its exit status."""
    try:
        _have_streams()
        os.umask(os.umask(0o077) | 0o002)  # Python writes byte code there, too, that everybody must not replace
        sys.path[0] = unpacked(sys.argv[0])
        from runner.cli import main as start  # noqa: PLC0415 # it is there now

        return start()
    except KeyboardInterrupt:
        return 130


def _have_streams() -> None:
    """Open standard streams that are closed: files of ours would get their numbers, and what is said would go there."""
    for number, name in enumerate(("stdin", "stdout", "stderr")):
        if getattr(sys, name) is None:
            os.dup2(os.open(os.devnull, os.O_RDWR), number)
            os.set_inheritable(number, True)
            setattr(sys, name, open(number, "w" if number else "r", closefd=False))  # noqa: SIM115 # as Python does


def unpacked(file: str) -> str:
    """Return the directory that this built file's modules are in. Raises SystemExit when it can be nowhere."""
    named = os.environ.get(NAMED)
    refused = []
    # Compiled modules cannot be loaded from where no programs may be: that is the last resort.
    for root in [os.path.abspath(named)] if named else sorted(_roots(), key=_doubts):
        place = f"{root}/{BUILD}-{os.uname().machine}"
        try:
            os.makedirs(root, mode=0o700, exist_ok=True)
            if not named:
                _distrust(root)
            if not os.path.isdir(place):
                _unpack(file, root, place)
            _hold(place)
        except OSError as error:
            refused.append(f"{root}: {error.strerror}")
        else:
            return place
    raise SystemExit(f"studio-runner: it can unpack itself nowhere ({'; '.join(refused)}): set {NAMED} to a directory")


def _roots() -> Iterator[str]:
    """Yield the directories that may do, the best first: those whose content stays."""
    home = os.environ.get("HOME", "")
    with suppress(OSError):
        if os.stat(home).st_uid == os.geteuid():
            yield os.path.abspath(os.environ.get("XDG_CACHE_HOME") or f"{home}/.cache") + "/studio-runner"
    for directory in (os.environ.get("WORKING_DIR"), os.environ.get("TMPDIR"), "/var/tmp", "/tmp", "/dev/shm"):
        if directory and os.path.isdir(directory):
            yield f"{os.path.abspath(directory)}/studio-runner-{os.geteuid()}"


def _doubts(root: str) -> tuple[bool, bool]:
    """Tell whether no programs may be there, and whether others may put something else in its place."""
    return bool(os.statvfs(_there(root)).f_flag & os.ST_NOEXEC), _open_to_others(_there(os.path.dirname(root)))


def _there(directory: str) -> str:
    while not os.path.isdir(directory):
        directory = os.path.dirname(directory)
    return directory


def _open_to_others(directory: str) -> bool:
    """Tell whether others can rename what lies there, or the directory itself: in pods, volumes often are like that."""
    status = os.stat(directory)
    mode = status.st_mode
    by_group = mode & stat.S_IWGRP and status.st_gid != os.getegid()
    if (mode & stat.S_IWOTH or by_group) and not mode & stat.S_ISVTX:
        return True
    above = os.path.dirname(directory)
    return above != directory and _open_to_others(above)


def _distrust(root: str) -> None:
    """Raise OSError if others may have put something there."""
    status = os.lstat(root)
    if not stat.S_ISDIR(status.st_mode) or status.st_uid != os.geteuid() or status.st_mode & 0o022:
        raise PermissionError(errno.EPERM, "others may write there")


def _unpack(file: str, root: str, place: str) -> None:
    """Unpack the file, unless somebody else is just doing that; remove what is not used any more."""
    import shutil  # noqa: PLC0415 # only the first start pays for these
    import zipfile  # noqa: PLC0415

    with open(f"{root}/lock", "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if os.path.isdir(place):
            return
        draft = f"{root}/.studio-runner-draft"
        shutil.rmtree(draft, ignore_errors=True)
        with zipfile.ZipFile(file) as archive:
            for name in archive.namelist():
                if name.startswith(INSIDE) and not _of_other_machine(name):
                    _write(f"{draft}/{name[len(INSIDE) :]}", archive.read(name))
        os.rename(draft, place)
        for other in os.listdir(root):
            if _is_ours(root, other) and time.time() > os.stat(f"{root}/{other}").st_mtime + _UNUSED:
                _remove_unused(f"{root}/{other}")


def _is_ours(root: str, name: str) -> bool:
    """Tell whether it is an unpacked program: the directory that somebody has named may hold anything."""
    return name.endswith(f"-{os.uname().machine}") and os.path.isfile(f"{root}/{name}/{PROGRAM}")


def _of_other_machine(name: str) -> bool:
    native = f"{INSIDE}native/"
    return name.startswith(native) and not name.startswith(f"{native}{os.uname().machine}/")


def _write(path: str, data: bytes) -> None:
    os.makedirs(os.path.dirname(path), exist_ok=True)
    with open(path, "xb") as file:
        file.write(data)


def _hold(place: str) -> None:
    """Say that it is in use, for as long as this process lives: to us, and to systemd-tmpfiles."""
    held = os.open(place, os.O_RDONLY | os.O_DIRECTORY)
    with suppress(OSError):  # not every file system has locks
        fcntl.flock(held, fcntl.LOCK_SH)
    if not os.path.isdir(place):
        raise FileNotFoundError(errno.ENOENT, "it was removed just now: try again")
    with suppress(OSError):  # it may be read-only
        os.utime(held)


def _remove_unused(place: str) -> None:
    import shutil  # noqa: PLC0415

    with suppress(OSError):
        used = os.open(place, os.O_RDONLY | os.O_DIRECTORY)
        try:
            fcntl.flock(used, fcntl.LOCK_EX | fcntl.LOCK_NB)
            shutil.rmtree(place)
        finally:
            os.close(used)


if __name__ == "__main__":
    sys.exit(main())
