"""What environments are built of: interpreters, pip and uv, and the package indexes."""

from __future__ import annotations

import subprocess
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import unquote, urlsplit

from runner.commands.doctor.base import Finding, Subject, fail, ok, skip, warn
from runner.sandbox import interpreters
from runner.sandbox.building import find_uv
from runner.sandbox.indexes import Indexes
from runner.sandbox.interpreters import Interpreter
from runner.secrets.redaction import public

# What pip asks when nobody has told it otherwise: https://pip.pypa.io/en/stable/cli/pip_install/#cmdoption-i
_DEFAULT_INDEX = "https://pypi.org/simple"
# In seconds: to start a program, to connect to an index, and for its answer.
_PROGRAM, _ANSWER = 10.0, (5.0, 10.0)
_ON = ("1", "true", "yes", "on")


def pythons(subject: Subject) -> Iterator[Finding]:
    """Look for interpreters, and whether they can make virtual environments."""
    found = interpreters.there(more=subject.settings.python_dirs)
    if not found:
        yield fail("there is no Python for experiments", "install one, or name its directory with --python-dirs")
        return
    lame = {one: missing for one in found if (missing := _missing(one))}
    if good := [str(one) for one in found if one not in lame]:
        yield ok(f"Pythons for experiments: {', '.join(good)}")
    for one, missing in lame.items():
        yield warn(
            f"Python {one} ({one.path}) cannot make virtual environments: it has no {missing}",
            "install its venv package (Debian: python3-venv)",
        )


def _missing(one: Interpreter) -> str:
    """Return the modules that environments cannot be made without, "" when none is missing."""
    question = "import importlib.util as u; print(*[m for m in ('venv', 'ensurepip') if not u.find_spec(m)])"
    return _output([str(one.path), "-S", "-E", "-c", question])


def installers(subject: Subject) -> Iterator[Finding]:
    """Look for uv; pip comes with each Python."""
    uv = find_uv(subject.settings.uv)
    if not uv:
        why = "--uv=never" if subject.settings.uv == "never" else "uv is not installed"
        yield ok(f"environments are built with pip ({why}; with uv they are built several times as fast)")
    elif version := _output([uv, "--version"]):
        yield ok(f"environments are built with {version} ({uv}), and with pip where it cannot")
    else:
        yield fail(f"{uv} does not start", "install uv again, or give --uv=never")
    if uv and (unknown := Indexes.read(subject.environ).only_pips()):
        yield warn(f"uv does not know pip's settings {', '.join(unknown)}, so pip is used", "remove them if you can")


def indexes(subject: Subject) -> Iterator[Finding]:
    """Ask the package indexes of pip's settings, as far as they can be asked."""
    settings = Indexes.read(subject.environ).settings
    if settings.get("no-index", "").strip().lower() in _ON:
        yield skip("no package index is used (no-index is set)")
    else:
        main = settings.get("index-url", "") or subject.environ.get("UV_DEFAULT_INDEX", "") or _DEFAULT_INDEX
        for url in dict.fromkeys([main, *settings.get("extra-index-url", "").split()]):
            yield _index(url, settings.get("cert", ""))
    for place in settings.get("find-links", "").split():
        path = Path(unquote(urlsplit(place).path)) if place.startswith("file:") else Path(place)
        if "://" in place and not place.startswith("file:"):
            continue
        yield (
            ok(f"find-links: {path}") if path.exists() else warn(f"find-links: {path} is not there", "make or unset it")
        )


def _index(url: str, cert: str) -> Finding:
    """Ask one index whether it has pip."""
    shown = public(url)
    if url.startswith("file:"):
        there = Path(unquote(urlsplit(url).path)).is_dir()
        return (
            ok(f"package index {shown}")
            if there
            else fail(f"package index {shown} is not there", "check pip's settings")
        )
    import requests  # noqa: PLC0415

    try:
        with requests.get(f"{url.rstrip('/')}/pip/", timeout=_ANSWER, stream=True, verify=cert or True) as answer:
            status = answer.status_code
    except (requests.RequestException, OSError) as error:
        return fail(
            f"package index {shown} cannot be reached ({type(error).__name__})",
            "check the network and proxies, or name an index that can be: PIP_INDEX_URL",
        )
    if status in (401, 403):
        return fail(f"package index {shown} refuses us with status {status}", "check the password in its URL")
    if status not in (200, 404):
        return warn(
            f"package index {shown} answers with status {status}", "check its URL: it must end where names follow"
        )
    return ok(f"package index {shown} answers")


def _output(command: list[str]) -> str:
    try:
        done = subprocess.run(command, capture_output=True, timeout=_PROGRAM, check=True, text=True)
    except (OSError, subprocess.SubprocessError):
        return ""
    return done.stdout.strip()
