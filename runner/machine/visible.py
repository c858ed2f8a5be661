"""Which cards this runner may use: ``CUDA_VISIBLE_DEVICES`` and ``NVIDIA_VISIBLE_DEVICES``, which may both restrict it.

Indexes are those of nvidia-smi. https://docs.nvidia.com/cuda/cuda-c-programming-guide/#cuda-environment-variables and
https://docs.nvidia.com/datacenter/cloud-native/container-toolkit/latest/docker-specialized.html say what is written
there.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence

from runner.machine.nvml import Sight

_CUDA, _CONTAINER = "CUDA_VISIBLE_DEVICES", "NVIDIA_VISIBLE_DEVICES"
_NONE = ("none", "void", "nodevfiles", "-1")


def forbidden(environ: Mapping[str, str]) -> str:
    """Return the variable that allows no card at all, "" when neither says so."""
    return next(
        (name for name in (_CUDA, _CONTAINER) if (words := _words(name, environ)) is not None and not words), ""
    )


def allowed(sights: Sequence[Sight], environ: Mapping[str, str]) -> list[Sight]:
    """Return the cards, and the instances of cards, that may be used."""
    found = list(sights)
    for name in (_CUDA, _CONTAINER):
        words = _words(name, environ)
        if words is not None and not (name == _CONTAINER and _renumbered(words, sights)):
            found = [sight for sight in found if _named(sight, words)]
    return found


def unknown(sights: Iterable[Sight], environ: Mapping[str, str]) -> list[str]:
    """Return what the variables name and is not there, as NAME=WORD."""
    sights = list(sights)
    return [
        f"{name}={word}"
        for name in (_CUDA, _CONTAINER)
        if not (name == _CONTAINER and _renumbered(_words(name, environ) or [], sights))
        for word in _words(name, environ) or ()
        if not any(_named(sight, [word]) for sight in sights)
    ]


def _words(name: str, environ: Mapping[str, str]) -> list[str] | None:
    """Return what a variable names; None when it names all."""
    if name not in environ or environ[name].strip().lower() == "all":
        return None
    words: list[str] = []
    for word in map(str.strip, environ[name].split(",")):
        if not word or word.lower() in _NONE:
            break  # CUDA ignores all behind what is no device
        words.append(word)
    # An empty CUDA_VISIBLE_DEVICES hides all; the other one is what containers have that are not about GPUs.
    return words


def _renumbered(words: Sequence[str], sights: Iterable[Sight]) -> bool:
    """True for indexes of the host's, of which a container sees only the cards: it numbers them anew."""
    cards = {sight.index for sight in sights if not sight.parent}
    return all(word.isdigit() for word in words) and len(set(words)) == len(cards)


def _named(sight: Sight, words: Iterable[str]) -> bool:
    return any(_is_named(sight, word) for word in words)


def _is_named(sight: Sight, word: str) -> bool:
    """True when a word means a card, the card that an instance is of, or the instance itself."""
    if word.isdigit():
        return int(word) == sight.index
    if match := re.fullmatch(r"(\d+)[:.](\d+)", word):
        return bool(sight.parent) and (int(match[1]), int(match[2])) == (sight.index, sight.instance)
    # The parts of UUIDs that tell them apart are enough.
    return any(uuid.startswith(word) for uuid in (sight.uuid, sight.parent) if uuid)
