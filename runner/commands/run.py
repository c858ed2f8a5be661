"""``studio-runner run``: one experiment without a queue, by the very code that runs those from queues."""

from __future__ import annotations

import json
import os
import secrets
import shlex
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

from runner import log
from runner.commands import message_file, serve
from runner.commands.follow import METADATA, RESULTS, fetch_results
from runner.commands.message_file import ByHand
from runner.commands.only_message import OnlyMessage
from runner.commands.shelf import Shelf, made, packed, shelf_at, store
from runner.errors import ConfigError
from runner.events import DONE, FAILED, GIVE_BACK
from runner.machine.users import own_home
from runner.message import request
from runner.message.request import Request
from runner.options.reading import option, read
from runner.options.settings import log_style

_USAGE = f"""studio-runner run [option ...] MESSAGE.json
       studio-runner run [option ...] SCRIPT.py [ARGUMENT ...]

Runs one experiment here and now, as the runner would run it from a queue, and shows its output. Of a SCRIPT it makes a
message whose workspace is the script's directory, and whose artifacts are files in a directory of their own: that of
--output, which also gets the results. A MESSAGE's results go where it says, and file:// ones need --file-root.
Ctrl-C stops the experiment, and stores what it has; a second time, it ends at once.

The exit status is {DONE} when it completed, {FAILED} when it failed,
and {GIVE_BACK} when it could not be run to its end here."""

_own = partial(option, prefix="STUDIO_")
_STATUSES = {"completed": DONE, "failed": FAILED, "refused": FAILED}


def _requirement(value: str) -> tuple[str, ...]:
    return (value,)


@dataclass(frozen=True)
class RunSettings(ByHand):
    """The options of the runner, and those of ``run``."""

    output: str = _own("", "directory for a script's artifacts and results [a new one, which is told]", metavar="DIR")
    requirement: tuple[str, ...] = _own(
        (), "what pip is to install for a script", _requirement, metavar="REQUIREMENT", many=True
    )
    pythonver: str = _own("3", "Python that a script wants, for example 3.11", metavar="VERSION")


def main(arguments: Sequence[str]) -> int:
    """Run one experiment; return the exit status. Raises ConfigError, RequestError, MachineError."""
    settings, rest = read(RunSettings, arguments, os.environ, usage=_USAGE, words=True)
    if not rest:
        raise ConfigError("name a message or a Python file: studio-runner run MESSAGE.json|SCRIPT.py [ARGUMENT ...]")
    name, *words = rest
    log.start(log_style(settings, os.environ))
    if Path(name).suffix == ".py":
        return _run_script(Path(name), words, settings)
    if Path(name).is_dir():
        raise ConfigError(f"{name} is a directory: name a message or a Python file in it")
    if words:
        raise ConfigError(f"{words[0]!r} is too much: a message says itself with which arguments its script is run")
    return _run(message_file.read(name, settings), settings)


def _run(wanted: Request, settings: RunSettings) -> int:
    """Be a runner that has this one message; it is what it would be on a queue, but tried once."""
    only = OnlyMessage(json.dumps(wanted.document).encode())
    # The first signal stops the experiment; nobody else looks at this runner.
    ours = replace(
        settings, clear_text_messages=True, echo_output=True, max_attempts=1, grace_period=0.0, prom_address=""
    )
    serve.serve(ours, clock=time.monotonic, only=only)
    status = _STATUSES.get(only.outcome, GIVE_BACK)
    if status == GIVE_BACK:
        _say(f"experiment {wanted.key!r} was not run to its end here: the lines above say why")
    return status


def _run_script(script: Path, words: Sequence[str], settings: RunSettings) -> int:
    shelf, directory = _place(script, settings)
    document = _document(script, words, settings, shelf)
    with packed(script.resolve().parent) as (file, digest):
        document["experiment"]["artifacts"]["workspace"] = shelf.artifact(f"{digest}.tar", mutable=False)
        wanted = request.from_document(document)
        store(file, wanted.artifacts["workspace"], shelf.stores)
    (directory / "message.json").write_text(json.dumps(document, indent=2))
    _say(f"{directory / 'message.json'} is the message of experiment {wanted.key!r}")
    status = _run(wanted, replace(settings, file_root=(*settings.file_root, str(directory))))
    for label, path in fetch_results(wanted, shelf.stores, directory):
        print(f"  {label:10} {path}", file=sys.stderr)  # noqa: T201 -- the experiment's own output goes to stdout
    return status


def _place(script: Path, settings: RunSettings) -> tuple[Shelf, Path]:
    """Return the directory for everything, and it as a store. Raises ConfigError."""
    if not script.is_file():
        raise ConfigError(f"{script} is not there, or is no file: name a Python file")
    workspace = script.resolve().parent
    if workspace in (own_home(), Path(tempfile.gettempdir()).resolve(), Path("/")):
        raise ConfigError(
            f"all of the script's directory becomes the workspace, and {workspace} is too much for that: "
            "put the script into a directory of its own"
        )
    if not settings.output:
        directory = Path(tempfile.mkdtemp(prefix=f"{script.stem}-")).resolve()
    else:
        directory = Path(settings.output).expanduser().resolve()
        if directory == workspace or workspace in directory.parents:
            raise ConfigError(f"--output {settings.output} is in the script's directory, and would be packed with it")
        made(directory, "--output")
    return shelf_at(f"file://{directory}/store", tls=False, s3_ca=""), directory


def _document(script: Path, words: Sequence[str], settings: RunSettings, shelf: Shelf) -> dict[str, Any]:
    """Write the message of a script, all but its workspace."""
    return {
        "experiment": {
            "key": f"{script.stem}_{secrets.token_hex(4)}",
            "filename": script.name,
            "args": [shlex.quote(word) for word in words],
            "pythonver": settings.pythonver,
            "pythonenv": list(settings.requirement),
            "artifacts": {label: shelf.artifact(f"{label}.tar", mutable=True) for label in (*RESULTS, METADATA)},
            "resources_needed": {},
        },
        "config": {},
    }


def _say(sentence: str) -> None:
    print(f"studio-runner: {sentence}", file=sys.stderr)  # noqa: T201 -- talking to the user
