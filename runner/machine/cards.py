"""How many slots a card has: those that StudioML knows by name, all others by their memory and generation."""

from __future__ import annotations

import re
from bisect import bisect_right

_GIB = 2**30

# The table that clients know. The A100 is the one with 40 GB.
_KNOWN = (
    (re.compile(r"GTX 10\d0\b|TITAN X\b|RTX 2080 Ti\b|K80\b"), 2),
    (re.compile(r"P40\b"), 4),
    (re.compile(r"P100\b"), 8),
    (re.compile(r"V100\b"), 16),
    (re.compile(r"A100\b(?!.*80GB)"), 24),
)
# A part of a card that a hypervisor gave to this machine: 10 GB of an A100, A100-10C.
_VIRTUAL = re.compile(r"-\d+[ABCQ]\b")
_MAKER = re.compile(r"^(NVIDIA|Tesla|GeForce|Quadro)\s+")

# Slots of 60 GiB, from a compute capability on. Those with stacked memory compute faster than others of their time; the
# rates agree with the table above, and an A100 of 80 GB has as much as two of 40 GB.
_RATES = (
    ((0, 0), 10),
    ((6, 0), 30),  # P100
    ((6, 1), 10),  # P40
    ((7, 0), 60),  # V100
    ((7, 5), 15),  # T4: 4
    ((8, 0), 36),  # A100-80: 48
    ((8, 6), 20),  # A10: 8, A40: 16; and of 8.9 L4: 8, L40S: 16
    ((9, 0), 42),  # H100: 56, H200: 100
    ((10, 0), 48),  # B200: 144
    ((12, 0), 20),  # RTX PRO 6000: 32
)
_CAPABILITIES = [capability for capability, _ in _RATES]
_FEWEST = 2


def slots_of(name: str, memory: int, capability: tuple[int, int]) -> int:
    """Return the slots of a card, at least 2; ``memory`` is in bytes, ``capability`` CUDA's compute capability."""
    while (short := _MAKER.sub("", name)) != name:
        name = short
    for pattern, slots in _KNOWN:
        if pattern.match(name) and not _VIRTUAL.search(name):
            return slots
    rate = _RATES[bisect_right(_CAPABILITIES, capability) - 1][1]
    # Drivers keep some of the memory to themselves: what is sold as 24 GB has 22.5.
    sold = -(-memory // (4 * _GIB)) * 4
    return max(_FEWEST, sold * rate // 60 // 2 * 2)


def slots_of_part(slots: int, memory: int, part: int) -> int:
    """Return the slots of a MIG instance that has ``part`` bytes of the ``memory`` of a card with so many slots."""
    return max(1, round(slots * part / memory)) if memory else 1
