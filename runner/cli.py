"""The command line: which part of the program to be, and the boundary at which errors become sentences."""

from __future__ import annotations

import io
import logging
import os
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from importlib import import_module

from runner import __version__, log
from runner.errors import ConfigError, RequestError, RunnerError, is_machines_own
from runner.options.reading import HelpWanted, read
from runner.options.settings import Settings, log_style

_USAGE = """studio-runner [option ...]
       studio-runner submit [option ...] DIRECTORY FILE [ARGUMENT ...]
       studio-runner top [option ...]
       studio-runner explain [option ...] QUEUE
       studio-runner run [option ...] MESSAGE.json|SCRIPT.py [ARGUMENT ...]
       studio-runner validate [option ...] MESSAGE.json
       studio-runner doctor [option ...] [MESSAGE.json]
       studio-runner prepare [option ...] MESSAGE.json
       studio-runner listen [option ...] QUEUE
       studio-runner keys [option ...] QUEUE ...
       studio-runner --version

Runs StudioML experiments from queues until it is told to stop, or submits one (see `studio-runner submit --help`).
Every option is a flag and an environment variable: --queue-match is QUEUE_MATCH. The flag wins."""

# The module of each sub-command in runner/commands, imported only when it is wanted: its ``main`` gets the other words.
_COMMANDS = {
    "doctor": "doctor",
    "explain": "explain",
    "keys": "keygen",
    "listen": "listen",
    "prepare": "prepare",
    "run": "run",
    "submit": "submit",
    "top": "top",
    "validate": "validate",
}


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the program; return its exit status: 0, 1 for an error told in a sentence, 2 for a mistake in the options."""
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="backslashreplace")  # as standard error is: no name is a reason to end
    try:
        status = _told(list(sys.argv[1:] if arguments is None else arguments))
        sys.stdout.flush()
    except KeyboardInterrupt:
        return 130
    except BrokenPipeError:  # whoever read what we print has enough
        _say_no_more()
        return 141
    except OSError as error:
        return _told_of_the_system(error)
    return status


def _told_of_the_system(error: OSError) -> int:
    """Tell what the system refuses: a file, or the output itself. Others are mistakes of ours, and raised again."""
    if error.filename is None and not is_machines_own(error):
        raise error
    logging.getLogger(__name__).debug("an error of the system ends the program", exc_info=error)
    if error.filename is None:
        _say_no_more()
    with suppress(OSError):
        what = error.filename or "what it says cannot be written"
        print(f"studio-runner: {what}: {error.strerror}", file=sys.stderr)  # noqa: T201
    return 1


def _say_no_more() -> None:
    """Have Python not try once more at its end what could not be written."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def _told(words: list[str]) -> int:
    """Do what the words say; errors are told in sentences."""
    try:
        return _done(words)
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


def _done(words: list[str]) -> int:
    word, rest = (words[0], words[1:]) if words else ("", [])
    if word in _COMMANDS:
        command: Callable[[Sequence[str]], int] = import_module(f"runner.commands.{_COMMANDS[word]}").main
        return command(rest)
    if word == "attempt":
        return _attempt(rest)
    if word == "--version":
        print(f"studio-runner {__version__}")  # noqa: T201
        return 0
    if word and not word.startswith("-"):
        known = ", ".join(sorted(_COMMANDS))
        raise ConfigError(f"{word!r} is no command: they are {known}; or give options alone, to run experiments")
    return _serve(words)


def _attempt(words: list[str]) -> int:
    """Be the process of one attempt; only the supervisor starts it (see order.py and events.py)."""
    from runner.attempt.process import serve  # noqa: PLC0415 -- each command pays only for what it uses

    log.start(log.Style.of(os.environ))
    return serve(sys.stdin.fileno(), int(words[0]))


def _serve(words: list[str]) -> int:
    from runner.commands import serve  # noqa: PLC0415

    settings, _ = read(Settings, words, os.environ, usage=_USAGE)
    log.start(log_style(settings, os.environ))
    with _profiled(settings.cpu_profile):
        return serve.serve(settings, clock=time.monotonic)


@contextmanager
def _profiled(path: str) -> Iterator[None]:
    """Write down, in the end, where the loop has spent its time; nothing without a path. Raises ConfigError."""
    if not path:
        yield
        return
    import cProfile  # noqa: PLC0415

    with cProfile.Profile() as profile:
        yield
    try:
        profile.dump_stats(path)
    except OSError as error:
        raise ConfigError(f"--cpu-profile {path} cannot be written: {error.strerror}") from error
