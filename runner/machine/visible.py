"""Which cards this runner may use: ``CUDA_VISIBLE_DEVICES`` and ``NVIDIA_VISIBLE_DEVICES``, which may both restrict it.

Indexes are those of nvidia-smi. https://docs.nvidia.com/cuda/cuda-c-programming-guide/#cuda-environment-variables and
https://docs.nvidia.com/datacenter/cloud-native/container-toolkit/latest/docker-specialized.html say what is written
there.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping, Sequence

from runner.machine.nvml import Sight

_CUDA, _CONTAINER = "CUDA_VISIBLE_DEVICES", "NVIDIA_VISIBLE_DEVICES"
_NONE = ("none", "void", "nodevfiles", "-1")
# What a container has that was given its cards in another way: by the Container Device Interface (void, or its names,
# vendor/class=device), or by Kubernetes' device plugin as mounts below a directory.
_CHOSEN = re.compile(r"void$|/|[^/]+/[^/]+=")


def forbidden(environ: Mapping[str, str]) -> str:
    """Return the variable that allows no card at all, "" when neither says so."""
    return next(
        (name for name in (_CUDA, _CONTAINER) if (words := _words(name, environ)) is not None and not words), ""
    )


def allowed(sights: Sequence[Sight], environ: Mapping[str, str]) -> list[Sight]:
    """Return the cards, and the instances of cards, that may be used."""
    lists = [words for _, words in _restrictions(sights, environ)]
    return [sight for sight in sights if all(_named(sight, words) for words in lists)]


def unknown(sights: Sequence[Sight], environ: Mapping[str, str]) -> list[str]:
    """Return what the variables name and is not there, as NAME=WORD."""
    return [
        f"{name}={word}"
        for name, words in _restrictions(sights, environ)
        for word in words
        if not any(_named(sight, [word]) for sight in sights)
    ]


def _restrictions(sights: Sequence[Sight], environ: Mapping[str, str]) -> Iterator[tuple[str, list[str]]]:
    """Yield each variable that restricts the cards, and what it names."""
    for name in (_CUDA, _CONTAINER):
        words = _words(name, environ)
        if words is not None and not (name == _CONTAINER and _renumbered(words, sights)):
            yield name, words


def _words(name: str, environ: Mapping[str, str]) -> list[str] | None:
    """Return what a variable names; None when it names all, or leaves it to others."""
    value = environ.get(name, "all").strip().lower()
    if value == "all" or (name == _CONTAINER and _CHOSEN.match(value)):
        return None
    words: list[str] = []
    for word in map(str.strip, environ[name].split(",")):
        if not word or word.lower() in _NONE:
            break  # CUDA ignores all behind what is no device
        words.append(word)
    # An empty CUDA_VISIBLE_DEVICES hides all; the other one is what containers have that are not about GPUs.
    return words


def _renumbered(words: Sequence[str], sights: Sequence[Sight]) -> bool:
    """True for indexes of the host's, of which a container sees only the cards and instances: it numbers them anew."""
    indexes = {index for word in words if (index := _index(word))}
    cards, parts = ([sight for sight in sights if bool(sight.parent) == part] for part in (False, True))
    named = [instance for _, instance in indexes if instance is not None]
    return (
        all(map(_index, words)) and len({card for card, _ in indexes}) == len(cards) and len(named) in (0, len(parts))
    )


def _named(sight: Sight, words: Iterable[str]) -> bool:
    return any(_is_named(sight, word) for word in words)


def _is_named(sight: Sight, word: str) -> bool:
    """True when a word means a card, the card that an instance is of, or the instance itself."""
    if index := _index(word):
        card, instance = index
        return card == sight.index and (instance is None or (bool(sight.parent) and instance == sight.instance))
    # The parts of UUIDs that tell them apart are enough.
    return any(uuid.startswith(word) for uuid in (sight.uuid, sight.parent) if uuid)


def _index(word: str) -> tuple[int, int | None] | None:
    """Return the number of a card, and that of its instance where the word has one; None when it is no index."""
    match = re.fullmatch(r"(\d+)(?:[:.](\d+))?", word)
    return (int(match[1]), int(match[2]) if match[2] else None) if match else None
