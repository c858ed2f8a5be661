"""What an archive's name says (protocol section 4)."""

from __future__ import annotations

# Longest first: ".tar.gz" is no ".gz". The earlier clients write bzip2 under ".tgz".
_SUFFIXES = {
    ".tar.bzip2": "bz2",
    ".tar.bz2": "bz2",
    ".tar.gz": "gz",
    ".tbz2": "bz2",
    ".tbz": "bz2",
    ".tgz": "bz2",
    ".tar": "",
}


def is_archive_name(key: str) -> bool:
    """True when a key's end says that it is an archive."""
    return any(key.lower().endswith(suffix) for suffix in _SUFFIXES)


def compression_of(key: str) -> str:
    """Return how an archive of that name is to be written: "" for not at all, ``gz`` or ``bz2``."""
    return next((kind for suffix, kind in _SUFFIXES.items() if key.lower().endswith(suffix)), "")
