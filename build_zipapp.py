"""Build ``studio-runner.pyz``: the runner and all that it imports, in one file that needs only Python 3.10 or newer.

    python build_zipapp.py [--output FILE]

Needs the packages of requirements/dev.txt. What it installs is pinned with hashes in requirements/runtime.txt; only
pure Python is taken, so the file runs on every architecture. The same sources give the same bytes.
"""

from __future__ import annotations

import argparse
import hashlib
import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).resolve().parent
CONTENT = {"runner", "requests", "urllib3", "certifi", "idna", "charset_normalizer", "pika"}
"""The packages that must be in the file, and all that may be."""

LARGEST = 3_000_000
"""Bytes that the file may have: what is much larger has something in it that nobody asked for."""

# 2020-01-01: zip files hold no earlier time than 1980, and some tools mistrust that one.
_EPOCH = "1577836800"


def main() -> int:
    """Build, check, and print what was built."""
    parser = argparse.ArgumentParser(description="Build studio-runner.pyz.")
    parser.add_argument("--output", type=Path, default=ROOT / "studio-runner.pyz", help="the file [%(default)s]")
    output: Path = parser.parse_args().output.resolve()
    with tempfile.TemporaryDirectory() as directory:
        site = Path(directory) / "site-packages"
        _install(site)
        _strip(site)
        _check(site)
        _pack(site, output)
    data = output.read_bytes()
    if len(data) > LARGEST:
        raise SystemExit(f"{output} has {len(data)} bytes, more than {LARGEST}: look what came in")
    print(f"{output}  {len(data)} bytes  sha256 {hashlib.sha256(data).hexdigest()}")  # noqa: T201
    return 0


def _install(site: Path) -> None:
    """Put the locked dependencies, as pure Python, and the runner's sources into a directory."""
    lock = ROOT / "requirements" / "runtime.txt"
    pure = ["--only-binary=:all:", "--platform=any", "--implementation=py", "--python-version=3.10", "--no-deps"]
    quiet = ["--quiet", "--disable-pip-version-check", "--root-user-action=ignore", "--no-warn-script-location"]
    pip = [sys.executable, "-m", "pip", "install", *quiet, "--no-compile", "--target", str(site)]
    subprocess.run([*pip, *pure, "--require-hashes", "-r", str(lock)], check=True)
    shutil.copytree(ROOT / "runner", site / "runner", ignore=shutil.ignore_patterns("__pycache__", "*.pyc"))


def _strip(site: Path) -> None:
    """Remove what differs from build to build, and the scripts of dependencies; licences and versions stay."""
    shutil.rmtree(site / "bin", ignore_errors=True)
    for info in site.glob("*.dist-info"):
        for name in ("RECORD", "INSTALLER", "REQUESTED", "direct_url.json"):
            (info / name).unlink(missing_ok=True)


def _check(site: Path) -> None:
    """Stop the build when something is missing, or when there is something that was not asked for."""
    found = {path.name for path in site.iterdir() if path.suffix != ".dist-info"}
    if found != CONTENT:
        raise SystemExit(f"missing: {sorted(CONTENT - found)}; unexpected: {sorted(found - CONTENT)}")
    compiled = sorted(path.name for path in site.rglob("*.so"))
    if compiled:
        raise SystemExit(f"not pure Python: {compiled}")


def _pack(site: Path, output: Path) -> None:
    shiv = [sys.executable, "-m", "shiv.cli", "--site-packages", str(site), "--output-file", str(output)]
    shiv += ["--entry-point", "runner.cli:main", "--python", "/usr/bin/env python3", "--compressed", "--reproducible"]
    subprocess.run(shiv, check=True, env={**os.environ, "SOURCE_DATE_EPOCH": _EPOCH}, stdout=subprocess.DEVNULL)


if __name__ == "__main__":
    sys.exit(main())
