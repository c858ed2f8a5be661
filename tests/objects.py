"""Whole objects of a store, as tests want them."""

from __future__ import annotations

from runner.storage.base import Store


def get(objects: Store, key: str) -> bytes:
    """Read an object in one go."""
    with objects.open(key) as stored:
        return stored.stream.read()


def put(objects: Store, key: str, data: bytes) -> None:
    """Write an object in one go."""
    with objects.create(key) as writer:
        writer.write(data)
