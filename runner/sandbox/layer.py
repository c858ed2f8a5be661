"""An attempt's own virtual environment: a thin layer of its own over a shared one, made without running anything.

It has a ``site-packages`` of its own, where pip in the experiment installs to, before the shared one, which it only
reads. pip finds the shared packages, and knows that they are outside and not to be removed.
"""

from __future__ import annotations

import os
from pathlib import Path

# Sorts before what pip adds, so that this comes first in the own directory. Unlike a mere path it makes Python read
# the .pth files of the shared directory too: editable packages and namespaces depend on these.
_LINK = "_shared.pth"
_LINK_LINE = "import site; site.addsitedir({!a})\n"

# Scripts are smaller, and programs larger, more or less. In bytes.
_LONGEST_SCRIPT = 64 * 1024


def lay(shared: Path, own: Path) -> None:
    """Make ``own``, which must not be there yet, a virtual environment with all packages of ``shared``."""
    packages = site_packages(shared)
    _mirror(shared, own, leave={packages, shared / "src"})
    mine = own / packages.relative_to(shared)
    mine.mkdir()
    (mine / _LINK).write_text(_LINK_LINE.format(str(packages)))


def site_packages(venv: Path) -> Path:
    """Return where the packages of a virtual environment are."""
    return next(venv.glob("lib/python*/site-packages"))


def _mirror(shared: Path, own: Path, *, leave: set[Path]) -> None:
    """Make the same directories, with links to the files; what has the environment's path in it becomes our own."""
    pairs = [(shared, own)]
    for source, target in pairs:  # grows while it is walked
        target.mkdir()
        for entry in os.scandir(source):
            path, twin = source / entry.name, target / entry.name
            if path in leave or entry.name.startswith("."):
                continue
            if entry.is_symlink():
                twin.symlink_to(path.readlink())
            elif entry.is_dir():
                pairs.append((path, twin))
            elif source == shared / "bin" and (script := _moved(path, shared, own)):
                twin.write_bytes(script)
                twin.chmod(0o755)
            elif path == shared / "pyvenv.cfg":
                twin.write_bytes(path.read_bytes())  # Python looks beside it, and follows no link
            else:
                twin.symlink_to(path)


def _moved(path: Path, shared: Path, own: Path) -> bytes:
    """Return a script with our own path for that of the shared environment, b"" when it does not have that."""
    if path.stat().st_size > _LONGEST_SCRIPT:
        return b""
    data = path.read_bytes()
    moved = data.replace(os.fsencode(shared), os.fsencode(own))
    return moved if moved != data else b""
