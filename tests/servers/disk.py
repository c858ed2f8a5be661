"""Disks that are small enough to be filled."""

from __future__ import annotations

import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest


@contextmanager
def small_disk(path: Path, size: str) -> Iterator[None]:
    """Mount a file system in memory at a directory, until the context ends; ``size`` is as mount takes it."""
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", f"size={size}", "none", path], check=False, capture_output=True
    )
    if mounted.returncode:
        pytest.skip("only root can mount the small file system that this test fills")
    try:
        yield
    finally:
        subprocess.run(["umount", path], check=True)
