"""Build ``studio-runner.pyz``: the runner and all that it imports, in one file that needs only CPython 3.10 to 3.13.

    python build_zipapp.py [--output FILE] [--sbom FILE]

Needs the packages of requirements/dev.txt. What it installs is pinned with hashes in requirements/runtime.txt. Most of
it is pure Python and runs everywhere; what is compiled comes once for each kind of machine, and lies where
runner/native.py looks for it. The same sources give the same bytes; runner/bootstrap.py is what starts first.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import re
import shutil
import struct
import subprocess
import sys
import tempfile
import zipfile
from collections.abc import Collection, Mapping
from functools import partial
from pathlib import Path
from typing import Any

from shiv.builder import write_file_prefix, write_to_zipapp  # type: ignore[import-untyped]

from runner import __version__, bootstrap
from tools import sbom
from tools.sbom import Wheel

ROOT = Path(__file__).resolve().parent

PURE = (
    *("requests", "urllib3", "certifi", "idna", "charset-normalizer", "pika"),
    *("botocore", "jmespath", "python-dateutil", "six", "typing-extensions", "nvidia-ml-py", "prometheus-client"),
)
"""Distributions that are installed as pure Python."""

CONTENT = {
    *("runner", "requests", "urllib3", "certifi", "idna", "charset_normalizer", "pika"),
    *("botocore", "jmespath", "dateutil", "six.py", "typing_extensions.py", "pynvml.py", "prometheus_client", "native"),
}
"""What must be at the top of the file, and all that may be."""

STABLE = ("cryptography", "pynacl", "bcrypt")
"""Compiled distributions that fit all Pythons."""

MACHINES = {"x86_64": 62, "aarch64": 183}
"""Kinds of machines, as ``uname -m`` names them, and as ELF numbers them."""

PYTHONS = ("3.10", "3.11", "3.12", "3.13")

SERVICES = {"sqs", "sts", "sso", "sso-oidc", "signin"}
"""The services of AWS that botocore is to know: queues, and whoever gives out credentials."""

LARGEST = 12_500_000
"""Bytes that the file may have: what is much larger has something in it that nobody asked for."""

LARGEST_UNPACKED = 40_000_000
"""Bytes that it may have when it is unpacked, which happens at its first start."""

# Of all files: zip files hold no earlier time than 1980, and some tools mistrust that one.
_EPOCH = (2020, 1, 1, 0, 0, 0)


def main() -> int:
    """Build, check, and print what was built."""
    parser = argparse.ArgumentParser(description="Build studio-runner.pyz.")
    parser.add_argument("--output", type=Path, default=ROOT / "studio-runner.pyz", help="the file [%(default)s]")
    parser.add_argument("--sbom", type=Path, help="where to write what is in it, in CycloneDX's form")
    options = parser.parse_args()
    output: Path = options.output.resolve()
    with tempfile.TemporaryDirectory() as directory:
        site = Path(directory) / "site-packages"
        wheels = _install(site, PURE, "--platform=any", "--implementation=py", "--python-version=3.10")
        for machine in MACHINES:
            wheels += _install_compiled(site / "native" / machine, machine)
        shutil.copytree(ROOT / "runner", site / "runner", ignore=shutil.ignore_patterns("__pycache__", "*.pyc"))
        _strip(site)
        _check(site)
        _pack(site, output)
    data = output.read_bytes()
    if len(data) > LARGEST:
        raise SystemExit(f"{output} has {len(data)} bytes, more than {LARGEST}: look what came in")
    sha256 = hashlib.sha256(data).hexdigest()
    if options.sbom:
        options.sbom.write_text(sbom.written(__version__, sha256, wheels))
    print(f"{output}  {len(data)} bytes  sha256 {sha256}")  # noqa: T201
    return 0


def _install_compiled(directory: Path, machine: str) -> list[Wheel]:
    """Put what is compiled for a kind of machine, and its Pythons, into a directory.

    Of cffi only the part that PyNaCl and cryptography need at run time: an extension module for each Python.
    """
    # What is built for manylinux2014 runs on every Linux with glibc 2.17 or newer.
    tags = (f"--platform=manylinux2014_{machine}", "--implementation=cp")
    wheels = _install(directory, STABLE, *tags, f"--python-version={PYTHONS[0]}")
    for python in PYTHONS:
        with tempfile.TemporaryDirectory() as temporary:
            wheels += _install(Path(temporary), ("cffi",), *tags, f"--python-version={python}")
            for path in (*Path(temporary).glob("_cffi_backend.*.so"), *Path(temporary).glob("*.dist-info")):
                if not (directory / path.name).exists():
                    shutil.move(path, directory)
    return wheels


def _install(directory: Path, names: Collection[str], *tags: str) -> list[Wheel]:
    """Put some of the locked distributions into a directory, as wheels with these tags; return which."""
    quiet = ["--quiet", "--disable-pip-version-check", "--root-user-action=ignore", "--no-warn-script-location"]
    pip = [sys.executable, "-m", "pip", "install", *quiet, "--no-compile", "--target", str(directory)]
    with tempfile.TemporaryDirectory() as temporary:
        lock, report = Path(temporary, "lock.txt"), Path(temporary, "report.json")
        lock.write_text(_locked(names))
        exact = [*tags, "--only-binary=:all:", "--no-deps", "--require-hashes"]
        subprocess.run([*pip, *exact, f"--report={report}", f"--requirement={lock}"], check=True)
        return sbom.wheels_in(json.loads(report.read_text()), directory)


def _locked(names: Collection[str]) -> str:
    """Return these distributions' part of the lock, without conditions: those speak of the Python that builds."""
    lock = (ROOT / "requirements" / "runtime.txt").read_text()
    entries = {entry.partition("==")[0]: entry for entry in re.split(r"\n(?=\S)", lock)}
    return "\n".join(re.sub(r" ;[^\\]*", " ", entries[name]) for name in names)


def _strip(site: Path) -> None:
    """Remove what differs from build to build, and what is never used; licences and versions stay."""
    shutil.rmtree(site / "bin", ignore_errors=True)
    for info in site.rglob("*.dist-info"):
        shutil.rmtree(info / "sboms", ignore_errors=True)
        for name in ("RECORD", "INSTALLER", "REQUESTED", "direct_url.json"):
            (info / name).unlink(missing_ok=True)
    for service in (site / "botocore" / "data").iterdir():
        if service.is_dir() and service.name not in SERVICES:
            shutil.rmtree(service)
    # NVIDIA's show how the library is used.
    (site / "example.py").unlink()
    # Certifi's are used.
    (site / "botocore" / "cacert.pem").unlink()
    for library in site.rglob("*.so"):
        library.write_bytes(_loadable(library.read_bytes()))


def _loadable(library: bytes) -> bytes:
    """Return what of a 64-bit ELF file is loaded: half of these are tables for debuggers, which lie behind that.

    The structures are those of https://refspecs.linuxfoundation.org/elf/gabi4+/ch4.eheader.html and ch5.pheader.html.
    """
    (table,) = struct.unpack_from("<Q", library, 32)
    size, count = struct.unpack_from("<HH", library, 54)
    segments = [struct.unpack_from("<8x Q 16x Q", library, table + each * size) for each in range(count)]
    cut = bytearray(library[: max(offset + length for offset, length in segments)])
    # There are no sections any more: no offset of their table, no number of them, none with their names.
    struct.pack_into("<Q", cut, 40, 0)
    struct.pack_into("<HH", cut, 60, 0, 0)
    return bytes(cut)


def _check(site: Path) -> None:
    """Stop the build when something is missing, or when there is something that was not asked for."""
    found = {path.name for path in site.iterdir() if path.suffix != ".dist-info"}
    _expect("packages", found, CONTENT)
    libraries = {str(path.relative_to(site)): path.read_bytes()[18:20] for path in site.rglob("*.so")}
    expected = {path: struct.pack("<H", number) for path, number in _libraries().items()}
    _expect("compiled", set(libraries.items()), set(expected.items()))
    unpacked = sum(path.stat().st_size for path in site.rglob("*") if path.is_file())
    if unpacked > LARGEST_UNPACKED:
        raise SystemExit(f"{unpacked} bytes unpacked, more than {LARGEST_UNPACKED}: look what came in")


def _libraries() -> dict[str, int]:
    """Return all shared libraries that there are to be, and for which machine."""
    stable = ["cryptography/hazmat/bindings/_rust.abi3.so", "nacl/_sodium.abi3.so", "bcrypt/_bcrypt.abi3.so"]
    return {
        f"native/{machine}/{name}": number
        for machine, number in MACHINES.items()
        for name in (
            *stable,
            *(f"_cffi_backend.cpython-{each.replace('.', '')}-{machine}-linux-gnu.so" for each in PYTHONS),
        )
    }


def _expect(what: str, found: set[Any], expected: set[Any]) -> None:
    if found != expected:
        raise SystemExit(f"{what}: missing: {sorted(expected - found)}; unexpected: {sorted(found - expected)}")


def _pack(site: Path, output: Path) -> None:
    """Have shiv write the file, with a start of our own, since shiv's needs a home directory that can be written to.

    It has the same bytes wherever and by whomever it is written, as long as zlib is the same.
    """
    files = {path.relative_to(site).as_posix(): path for path in site.rglob("*") if path.is_file()}
    with output.open("wb") as file:
        write_file_prefix(file, "/usr/bin/env python3")
        with zipfile.ZipFile(file, "w") as archive:
            put = partial(write_to_zipapp, archive, date_time=_EPOCH, compression=zipfile.ZIP_DEFLATED)
            put("__main__.py", _bootstrap({name: path.read_bytes() for name, path in files.items()}))
            for name in sorted(files):
                files[name].chmod(0o644)
                put(f"{bootstrap.INSIDE}{name}", files[name].read_bytes(), stat=files[name].stat())
    output.chmod(0o755)


def _bootstrap(files: Mapping[str, bytes]) -> bytes:
    """Return what runs first; it knows the build by its version and its content."""
    hashes = "".join(f"{hashlib.sha256(files[name]).hexdigest()} {name}\n" for name in sorted(files))
    build = f"{__version__}-{hashlib.sha256(hashes.encode()).hexdigest()[:16]}"
    source = files["runner/bootstrap.py"].decode()
    if source.count('BUILD = ""') != 1:
        raise SystemExit("runner/bootstrap.py has no place for the name of the build")
    return source.replace('BUILD = ""', f'BUILD = "{build}"').encode()


if __name__ == "__main__":
    sys.exit(main())
