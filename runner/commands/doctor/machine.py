"""The machine: cores, memory, disk, containers, clock, and who we are on it."""

from __future__ import annotations

import os
import resource
import subprocess
import time
import warnings
from collections.abc import Iterator
from email.utils import parsedate_to_datetime
from pathlib import Path

from runner.commands.doctor.base import Finding, Subject, fail, ok, skip, warn
from runner.commands.doctor.gpus import ledger_of
from runner.errors import MachineError
from runner.machine import delegated, inventory
from runner.machine.allocate import Allocator
from runner.machine.gpus import Gpus
from runner.sandbox.containers import find as find_program
from runner.sandbox.indexes import Indexes
from runner.supervisor import intake
from runner.units import format_duration, format_size

# What an experiment with a usual environment needs, in bytes.
_LITTLE_DISK, _LITTLE_MEMORY = 10 * 1000**3, 1000**3
# A smaller share of free inodes than this is soon used up by environments of some ten thousand files.
_LITTLE_INODES = 0.02
# In seconds: leases of experiments are compared between machines, and S3 refuses requests that are 15 minutes off.
_SKEW, _FATAL_SKEW = 5.0, 300.0
_ANSWER = (3.0, 5.0)
_PROGRAM = 10.0
_FEW_FILES = 1024


def working_directory(subject: Subject) -> Iterator[Finding]:
    """Look whether the runner can make and use its directory, and whether programs may be run there."""
    home = subject.settings.home
    there = home if home.exists() else home.parent
    if home.is_symlink() or (home.exists() and home.stat().st_uid != os.geteuid()):
        yield fail(f"{home} belongs to somebody else", "name another place with --working-dir")
    elif not os.access(there, os.W_OK | os.X_OK):
        yield fail(f"{there} may not be written by this user", "name another place with --working-dir")
    elif os.statvfs(there).f_flag & os.ST_NOEXEC:
        yield fail(f"{there} is mounted noexec, so no environment can be used there", "name another with --working-dir")
    else:
        yield ok(f"work directories and environments are kept in {home}")


def disk(subject: Subject) -> Iterator[Finding]:
    """Look how much room there is where files are kept."""
    places = {"work directories": subject.settings.home, "the cache": Path(subject.settings.cache_dir or "/nowhere")}
    for name, place in places.items():
        directory = next(each for each in (place, *place.parents) if each.is_dir())
        if name == "the cache" and not subject.settings.cache_dir:
            continue
        status = os.statvfs(directory)
        free = status.f_bavail * status.f_frsize
        if free < _LITTLE_DISK:
            yield warn(f"{format_size(free)} are free for {name} ({place})", "make room, or name another disk")
        else:
            yield ok(f"{format_size(free)} are free for {name} ({place})")
        if status.f_files and status.f_favail < status.f_files * _LITTLE_INODES:
            yield warn(f"the disk of {place} has only {status.f_favail} inodes left", "remove small files there")


def resources(subject: Subject) -> Iterator[Finding]:
    """Say what the runner would give out, and whether the message fits into it."""
    given = subject.settings
    home = next(each for each in (given.home, *given.home.parents) if each.is_dir())
    total = inventory.take_stock(
        home, max_cores=given.max_cores, max_mem=given.max_mem, max_disk=given.max_disk, kept=0
    )
    if total.ram < _LITTLE_MEMORY:
        yield warn(f"experiments get {total}", "free some memory, or give more to this container")
    else:
        yield ok(f"experiments get {total}")
    if given.max_cores > inventory.cores():
        yield warn(f"--max-cores {given.max_cores} is more than there are", "they are not given out")
    if wanted := subject.wanted:
        gpus = ledger_of(subject) if wanted.resources.gpus or wanted.resources.gpu_count else Gpus()
        plan = intake.plan(wanted, "", Allocator(total, gpus), given)
        python = f"Python {plan.interpreter}" if plan.interpreter else "the Python of its container"
        yield ok(f"the message gets {plan.need} and {python}")


def limits(subject: Subject) -> Iterator[Finding]:
    """Look at the limits that this process has, which all that it starts inherits."""
    files, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    if files != resource.RLIM_INFINITY and files < _FEW_FILES:
        yield warn(f"only {files} files may be open at a time", f"ulimit -n {min(most, 65536) if most > 0 else 65536}")
    if os.geteuid() == 0 and not subject.settings.run_as:
        yield ok("the runner is root here, and so are experiments; --run-as USER makes them somebody else")


def groups() -> Iterator[Finding]:
    """Say whether the kernel limits the memory of each experiment, or the runner has to measure it."""
    if reason := delegated.obstacle():
        remedy = "" if delegated.base() is None else "see docs/environments.md, Limits"
        yield skip(f"experiments have no control groups, the runner itself measures their memory: {reason}", remedy)
    else:
        yield ok(f"experiments get control groups below {delegated.base()}, in which the kernel limits their memory")


def containers(subject: Subject) -> Iterator[Finding]:
    """Look for what runs containers, and whether any image is allowed."""
    given = subject.settings
    try:
        path = find_program(given.singularity)
    except MachineError as error:
        yield fail(str(error), "or unset --singularity-allow") if given.singularity_allow else skip(str(error))
        return
    try:
        done = subprocess.run([path, "--version"], capture_output=True, timeout=_PROGRAM, check=True, text=True)
    except (OSError, subprocess.SubprocessError):
        yield fail(f"{path} does not start", "install it again")
        return
    if given.singularity_allow:
        yield ok(f"{done.stdout.strip()} ({path}) runs images that match {', '.join(given.singularity_allow)}")
    else:
        yield skip(f"{done.stdout.strip()} ({path}) is there, but no image may be run", "see --singularity-allow")


def clock(subject: Subject) -> Iterator[Finding]:
    """Compare the clock with that of a server which says what time it is."""
    for url in _clocks(subject):
        skew = _skew(url)
        if skew is None:
            continue
        how = f"this machine's clock is {format_duration(round(abs(skew), 1))} {'ahead' if skew > 0 else 'behind'}"
        remedy = "set the clock: systemctl enable --now systemd-timesyncd, or chronyd"
        if abs(skew) > _FATAL_SKEW:
            yield fail(f"{how}: stores refuse requests of another time", remedy)
        elif abs(skew) > _SKEW:
            yield warn(how, remedy)
        else:
            yield ok("the clock is right")
        return
    yield skip("no server could be asked what time it is")


def _clocks(subject: Subject) -> Iterator[str]:
    """Yield URLs of servers that are used anyway."""
    if subject.settings.store.startswith("s3://"):
        host = subject.settings.store.removeprefix("s3://").partition("/")[0]
        yield f"{'https' if 'amazonaws.com' in host or subject.settings.s3_ca else 'http'}://{host}/"
    for artifact in subject.wanted.artifacts.values() if subject.wanted else ():
        if artifact.location.scheme == "s3":
            yield f"{'https' if artifact.location.tls else 'http'}://{artifact.location.host}/"
            break
    if subject.settings.google_credentials:
        yield "https://storage.googleapis.com/"
    index = Indexes.read(subject.environ).settings.get("index-url", "https://pypi.org/simple")
    if index.startswith("http"):
        yield index


def _skew(url: str) -> float | None:
    """Return how many seconds our clock is ahead of a server's, None when it does not say."""
    import requests  # noqa: PLC0415

    # Who answers need not be trusted for this: with a wrong clock, no certificate is valid.
    warnings.filterwarnings("ignore", "Unverified HTTPS request")
    try:
        before = time.time()
        # Neither the index's password nor what ~/.netrc has is for somebody whose certificate is not looked at.
        with requests.head(url, auth=lambda request: request, timeout=_ANSWER, verify=False) as answer:  # noqa: S501
            theirs = parsedate_to_datetime(answer.headers["date"]).timestamp()
    except (requests.RequestException, OSError, KeyError, ValueError, TypeError):
        return None
    # The server's answer says whole seconds.
    ours = (before + time.time()) / 2
    return 0.0 if -1 <= ours - theirs <= 2 else ours - theirs - 0.5
