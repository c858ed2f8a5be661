"""The command line: which part of the program to be, and the boundary at which errors become sentences."""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Sequence

from runner import __version__, log
from runner.errors import ConfigError, RequestError, RunnerError
from runner.settings import HelpWanted, Settings, read

_USAGE = """studio-runner [option ...]
       studio-runner submit [option ...] DIRECTORY FILE [ARGUMENT ...]
       studio-runner top [option ...]
       studio-runner explain [option ...] QUEUE
       studio-runner prepare [option ...] MESSAGE.json
       studio-runner listen [option ...] QUEUE
       studio-runner keys [option ...] QUEUE ...
       studio-runner --version

Runs StudioML experiments from queues until it is told to stop, or submits one (see `studio-runner submit --help`).
Every option is a flag and an environment variable: --queue-match is QUEUE_MATCH. The flag wins."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the program; return its exit status: 0, 1 for an error told in a sentence, 2 for a mistake in the options."""
    words = list(sys.argv[1:] if arguments is None else arguments)
    commands = {
        "attempt": _attempt,
        "submit": _submit,
        "listen": _listen,
        "top": _top,
        "explain": _explain,
        "prepare": _prepare,
        "keys": _keys,
        "--version": _version,
    }
    try:
        if words and words[0] in commands:
            return commands[words[0]](words[1:])
        return _serve(words)
    except HelpWanted as wanted:
        print(wanted)  # noqa: T201 -- talking to the user
        return 0
    except (ConfigError, RequestError) as error:
        for fault in error.faults:
            print(f"studio-runner: {fault}", file=sys.stderr)  # noqa: T201
        return 2 if isinstance(error, ConfigError) else 1
    except RunnerError as error:
        print(f"studio-runner: {error}", file=sys.stderr)  # noqa: T201
        return 1
    except KeyboardInterrupt:
        return 130


def _version(_words: list[str]) -> int:
    print(f"studio-runner {__version__}")  # noqa: T201
    return 0


def _attempt(words: list[str]) -> int:
    """Be the process of one attempt; only the supervisor starts it (see events.py)."""
    from runner.attempt_process import serve  # noqa: PLC0415 -- each command pays only for what it uses

    log.start(log.level_of(os.environ.get("LOGXI", "")))
    return serve(sys.stdin.fileno(), int(words[0]))


def _submit(words: list[str]) -> int:
    from runner.submit import main as submit  # noqa: PLC0415

    return submit(words)


def _top(words: list[str]) -> int:
    from runner.top import main as top  # noqa: PLC0415

    return top(words)


def _explain(words: list[str]) -> int:
    from runner.explain import main as explain  # noqa: PLC0415

    return explain(words)


def _prepare(words: list[str]) -> int:
    from runner.prepare import main as prepare  # noqa: PLC0415

    log.start(log.level_of(os.environ.get("LOGXI", "")))
    return prepare(words)


def _keys(words: list[str]) -> int:
    from runner.keygen import main as keys  # noqa: PLC0415

    return keys(words)


def _listen(words: list[str]) -> int:
    from runner.listen import main as listen  # noqa: PLC0415

    return listen(words)


def _serve(words: list[str]) -> int:
    from runner import serve  # noqa: PLC0415

    settings, _ = read(Settings, words, os.environ, usage=_USAGE)
    log.start(log.level_of(os.environ.get("LOGXI", ""), debug=settings.debug))
    return serve.serve(settings, clock=time.monotonic)
