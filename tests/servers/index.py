"""A package index of tiny packages, made here: real HTTP, PEP 503.

with serving() as server:
    offer(server, wheel("six", "1.0"), sdist("old", "2"))
    url = f"http://{server.host}/simple/"
"""

from __future__ import annotations

import base64
import hashlib
import io
import tarfile
import zipfile
from collections.abc import Mapping

from tests.servers.http import HttpServer, Served

File = tuple[str, bytes]


def wheel(
    name: str,
    version: str,
    *,
    requires: tuple[str, ...] = (),
    extras: Mapping[str, str] | None = None,
    files: Mapping[str, str] | None = None,
    script: bool = False,
) -> File:
    """Make a wheel with the module ``name``, which knows its ``version``; ``files`` are others, paths and contents."""
    info = f"{name}-{version}.dist-info"
    metadata = [f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}"]
    metadata += [f"Requires-Dist: {each}" for each in requires]
    for extra, needed in (extras or {}).items():
        metadata += [f"Provides-Extra: {extra}", f"Requires-Dist: {needed}; extra == '{extra}'"]
    contents = {
        f"{name}.py": f"version = {version!r}\ndef main():\n    import sys\n    print({name!r}, version, sys.prefix)\n",
        f"{info}/METADATA": "\n".join(metadata) + "\n",
        f"{info}/WHEEL": "Wheel-Version: 1.0\nGenerator: tests\nRoot-Is-Purelib: true\nTag: py3-none-any\n",
        **(files or {}),
    }
    if script:
        contents[f"{info}/entry_points.txt"] = f"[console_scripts]\n{name}={name}:main\n"
    lines = [f"{path},sha256={_digest(text)},{len(text.encode())}" for path, text in contents.items()]
    contents[f"{info}/RECORD"] = "\n".join([*lines, f"{info}/RECORD,,"]) + "\n"
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        for path, text in contents.items():
            archive.writestr(path, text)
    return f"{name}-{version}-py3-none-any.whl", buffer.getvalue()


def sdist(name: str, version: str, *, setup: str = "") -> File:
    """Make a source distribution; ``setup`` comes before its setup(…)."""
    text = f"{setup}\nfrom setuptools import setup\nsetup(name={name!r}, version={version!r}, py_modules=[{name!r}])\n"
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w:gz") as archive:
        contents = {"setup.py": text, f"{name}.py": f"version = {version!r}\n"}
        contents["PKG-INFO"] = f"Metadata-Version: 1.0\nName: {name}\nVersion: {version}\n"
        for path, content in contents.items():
            member = tarfile.TarInfo(f"{name}-{version}/{path}")
            member.size = len(content)
            archive.addfile(member, io.BytesIO(content.encode()))
    return f"{name}-{version}.tar.gz", buffer.getvalue()


def offer(server: HttpServer, *files: File) -> None:
    """Put files into the index, with their hashes as indexes tell them; a second call adds to the first."""
    pages: dict[str, str] = {}
    for filename, data in files:
        server.objects[f"/files/{filename}"] = Served(data)
        name = filename.split("-")[0]
        link = f"../../files/{filename}#sha256={hashlib.sha256(data).hexdigest()}"
        pages[name] = pages.get(name, "") + f'<a href="{link}">{filename}</a>\n'
    for name, links in pages.items():
        page = server.objects.setdefault(f"/simple/{name}/", Served(b"", {"Content-Type": "text/html"}))
        page.body += links.encode()


def _digest(text: str) -> str:
    return base64.urlsafe_b64encode(hashlib.sha256(text.encode()).digest()).decode().rstrip("=")
