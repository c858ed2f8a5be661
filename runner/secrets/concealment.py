"""The runner's own secrets: which they are, and how they are kept from everybody who can look at its processes."""

from __future__ import annotations

import configparser
import ctypes
import dataclasses
import json
import os
import resource
from collections.abc import Collection, Iterator, Mapping
from pathlib import Path

from runner.crypto.private_keys import KEY, KEYS, PASSPHRASE, PASSPHRASES
from runner.options.settings import Settings
from runner.secrets.masking import Secrets
from runner.secrets.redaction import secrets_of, secrets_of_variable

_PR_SET_DUMPABLE = 4
# Where /proc/self/stat has arg_start, arg_end, env_start and env_end, counted from the state: proc(5).
_ARGUMENTS, _ENVIRONMENT = 45, 47
# No key or file of credentials is larger, in bytes.
_LARGEST = 64 * 1024
# So many lines of a private key tell it from all others.
_LINES_OF_KEY = 3


def close_memory() -> None:
    """Let no other process of this user look into this one's memory and environment, and leave no core dumps.

    Root can look all the same. What is started from here can be looked at again.
    """
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    ctypes.CDLL(None).prctl(_PR_SET_DUMPABLE, 0, 0, 0, 0)


def own_secrets(settings: Settings, environ: Mapping[str, str]) -> Secrets:
    """Return all secrets that the options hold or name, and those of the environment.

    Variables that messages may read are none.
    """
    return Secrets.of({*_of_options(settings), *_of_environment(environ, settings.env_allow)})


def hide(secrets: Secrets) -> None:
    """Take secrets out of what /proc shows of this process's arguments and environment, and children inherit.

    ``os.environ`` keeps them, for the libraries that look there.
    """
    for name, value in os.environ.items():
        if secrets.within(os.fsencode(value)):
            os.unsetenv(name)  # of the C library's environment only
    fields = Path("/proc/self/stat").read_text().rpartition(")")[2].split()
    for place in (_ARGUMENTS, _ENVIRONMENT):
        start, end = int(fields[place]), int(fields[place + 1])
        if start and end > start:
            _overwrite(start, end - start, secrets)


def _overwrite(address: int, size: int, secrets: Secrets) -> None:
    shown = ctypes.string_at(address, size)
    for start, end in secrets.spans(shown):
        ctypes.memset(address + start, ord("*"), end - start)


def _of_environment(environ: Mapping[str, str], allowed: Collection[str] = ()) -> Iterator[str]:
    for name, value in environ.items():
        if name not in allowed and not _is_file(value):
            yield from secrets_of_variable(name, value)


def _is_file(value: str) -> bool:
    return value.startswith("/") and Path(value).exists()


def _of_options(settings: Settings) -> Iterator[str]:
    for field in dataclasses.fields(settings):
        value = getattr(settings, field.name)
        if isinstance(value, str) and not _is_file(value):
            yield from secrets_of({field.name: os.path.expandvars(value)})
    for path in sorted((settings.private_keys / KEYS).glob(f"{KEY}*")):
        yield from _of_key(path)
    for path in sorted((settings.private_keys / PASSPHRASES).glob(f"{PASSPHRASE}*")):
        yield _content(path).strip()
    named = {name: getattr(settings, name) for name in ("s3_key", "google_credentials", "sqs_certs")}
    if named["s3_key"]:
        yield from _of_key(Path(named["s3_key"]))
    if named["google_credentials"]:
        yield from _of_account(Path(named["google_credentials"]))
    if named["sqs_certs"]:
        for path in sorted(Path(named["sqs_certs"]).glob("*/*")):
            yield from _of_profiles(path)


def _of_key(path: Path) -> Iterator[str]:
    """Yield some lines of the second half of a key: the first one is public in some forms of it."""
    lines = [line.strip() for line in _content(path).splitlines() if line.strip() and not line.startswith("-----")]
    half = lines[len(lines) // 2 :]
    yield from half[:: max(1, len(half) // _LINES_OF_KEY)][:_LINES_OF_KEY]


def _of_account(path: Path) -> Iterator[str]:
    try:
        account = json.loads(_content(path))
    except (ValueError, RecursionError):
        return
    for text in secrets_of(account) if isinstance(account, dict) else ():
        lines = [line for line in text.splitlines() if not line.startswith("-----")]
        yield from lines[len(lines) // 2 :][:_LINES_OF_KEY]


def _of_profiles(path: Path) -> Iterator[str]:
    """Yield the keys of an AWS ini file."""
    parser = configparser.RawConfigParser()
    try:
        parser.read_string(_content(path))
    except configparser.Error:
        return
    for section in parser.sections():
        for name, value in parser.items(section):
            yield from secrets_of_variable(name, value)


def _content(path: Path) -> str:
    try:
        with path.open("rb") as file:
            return file.read(_LARGEST).decode(errors="replace")
    except OSError:
        return ""  # who needs it says so
