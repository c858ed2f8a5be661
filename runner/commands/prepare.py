"""``studio-runner prepare MESSAGE.json``: build the environment that a message needs, before it comes."""

from __future__ import annotations

import os
import subprocess
import time
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from runner import log
from runner.artifacts.artifacts import Artifacts
from runner.artifacts.budget import Budget
from runner.commands import message_file
from runner.commands.message_file import ByHand
from runner.errors import ConfigError, MachineError
from runner.machine.users import User, give
from runner.message.request import Request
from runner.options.reading import read
from runner.options.settings import Settings, log_style
from runner.order import Order
from runner.place import Place, make_home, placed
from runner.sandbox.base import Job, user_of
from runner.sandbox.kinds import sandbox_for
from runner.storage.stores import Stores
from runner.supervisor import intake
from runner.supervisor.orders import options_of
from runner.units import format_duration

_USAGE = """studio-runner prepare [option ...] MESSAGE.json

Builds the environment of the experiment in a message, as an attempt at it on this machine would find it. Give it the
options that the runner has, --working-dir above all. Its workspace is fetched, for it may hold packages."""


def main(arguments: Sequence[str]) -> int:
    """Build, or find that it is there; return 0. Raises RequestError with all faults of the message, among others."""
    settings, rest = read(ByHand, arguments, os.environ, usage=_USAGE, words=True)
    log.start(log_style(settings, os.environ))
    if len(rest) != 1:
        raise ConfigError("name one file with a message: studio-runner prepare MESSAGE.json")
    wanted = message_file.read(rest[0], settings)
    make_home(settings.home, shared=bool(settings.run_as))
    order = _order(wanted, settings)
    began = time.monotonic()
    with placed(settings.home, wanted.key, keep=False) as place:
        _fetch_workspace(wanted, order, place)
        user = user_of(order)
        if user:
            give(place.workspace, user)
            give(place.scratch / "tmp", user)
            place.open_to(user.gid)
        stores = Stores(order.options.of_stores, sleep=time.sleep)
        sandbox = sandbox_for(Job(wanted, order, place, partial(_run, user), _say, time.sleep), stores)
        sandbox.prepare()
    how = f"built in {format_duration(round(time.monotonic() - began, 1))}" if sandbox.built else "there already"
    if sandbox.shared is None:
        _say(f"experiment {wanted.key!r} needs nothing but its image, which is here")
        return 0
    _say(
        f"the environment of experiment {wanted.key!r} is {how}: Python {sandbox.version} with "
        f"{len(sandbox.packages())} packages, {sandbox.shared.bytes / 1e6:.0f} MB, in {sandbox.shared.content}"
    )
    return 0


def _order(wanted: Request, settings: Settings) -> Order:
    interpreter = intake.interpreter(wanted, settings)
    return Order(
        document=wanted.document,
        queue="",
        failures=0,
        redeliveries=None,
        allowed=1,
        python=str(interpreter.path) if interpreter else "",
        version=str(interpreter or ""),
        reported=False,
        options=options_of(settings, cache_size=settings.cache_size),
        gpus=("any",) if wanted.resources.gpus or wanted.resources.gpu_count else (),
    )


def _fetch_workspace(wanted: Request, order: Order, place: Place) -> None:
    if workspace := wanted.artifacts.get("workspace"):
        artifacts = Artifacts([workspace], place, Budget(wanted.resources.hdd or None))
        artifacts.fetch(workspace, Stores(order.options.of_stores, sleep=time.sleep), lambda: None)


def _run(user: User | None, argv: Sequence[str], env: Mapping[str, str], cwd: Path) -> int:
    whose: dict[str, Any] = {"user": user.uid, "group": user.gid, "extra_groups": user.groups} if user else {}
    try:
        return subprocess.run(argv, env=env, cwd=cwd, stdin=subprocess.DEVNULL, check=False, **whose).returncode
    except OSError as error:
        raise MachineError(f"{argv[0]} cannot be started: {error.strerror}") from error


def _say(sentence: str) -> None:
    print(f"studio-runner: {sentence}", flush=True)  # noqa: T201 -- talking to the user
