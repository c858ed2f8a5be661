"""Damage: inputs that are almost right, made from right ones."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from random import Random

# What a mutated input may grow to, in bytes.
_LONGEST = 64 * 1024
# What readers of numbers and texts stumble over, in every format.
_WORDS = (
    *(b"", b"0", b"-1", b"1", b"255", b"256", b"4294967296", b"9223372036854775808", b"1e999", b"NaN", b"9" * 5000),
    *(b"\0", b"\xff", b"\xed\xa0\x80", b"\xe2\x80\xa8", b"\x1b[2J", b"%s%n", b"../../etc/passwd", b"/", b"..", b"{x}"),
    *("٣".encode(), "ß".encode(), "\u202e".encode(), b" ", b"\t", b"\r\n", b"\n", b"'", b'"', b"\\", b"${HOME}", b"-"),
    b"a" * 300,
)
# Values of JSON, whole ones.
JSON_TOKENS = re.compile(rb'"(?:[^"\\]|\\.)*"|-?\d[\d.eE+-]*|true|false|null')
JSON_WORDS = (
    *(b"null", b"true", b"[]", b"{}", b"[[], {}, null]", b'{"a": null}', b"[" * 70 + b"]" * 70),
    *(b'""', b'"\\ud800"', b'"\\u0000"', b"0", b"-1", b"1.5", b"1e308", b"-0.0", b"1" * 900),
    *(json.dumps(word.decode(errors="replace")).encode() for word in _WORDS),
)


# How many tokens are replaced, and how many bytes a word in place may take.
_COUNTS = (0, 1, 1, 1, 2, 3, 8)
_ROOM = 100


@dataclass(frozen=True)
class Mutator:
    """Makes inputs from ``seeds``.

    ``tokens`` finds what is worth replacing, by one of ``words`` or by another token: most inputs have nothing else
    done to them, and often are what they were still. ``repair`` makes good again what would otherwise be refused
    at first sight, such as checksums. ``in_place``: what is replaced keeps its room, for formats of blocks.
    """

    seeds: Sequence[bytes]
    words: Sequence[bytes]
    tokens: re.Pattern[bytes]
    repair: Callable[[bytes, Random], bytes] = lambda data, _random: data
    in_place: bool = False

    def inputs(self, random: Random) -> Iterator[bytes]:
        """Yield inputs without end; the same ones for the same state of ``random``."""
        while True:
            data = self._reworded(random)
            if not random.getrandbits(2):
                for _ in range(1 + random.getrandbits(2)):
                    data = random.choice(_EDITS)(data, random)[:_LONGEST]
            yield self.repair(data, random)

    @cached_property
    def _spans(self) -> list[list[tuple[int, int]]]:
        return [[found.span() for found in self.tokens.finditer(seed)] or [(0, len(seed))] for seed in self.seeds]

    @cached_property
    def _found(self) -> list[bytes]:
        return [seed[start:end] for seed, spans in zip(self.seeds, self._spans, strict=True) for start, end in spans]

    def _reworded(self, random: Random) -> bytes:
        """Return a seed with some of its tokens replaced."""
        number = random.randrange(len(self.seeds))
        seed, spans = self.seeds[number], self._spans[number]
        pieces, done = [], 0
        for start, end in sorted(random.sample(spans, min(len(spans), random.choice(_COUNTS)))):
            if start < done:
                continue
            word = random.choice(random.choice((self.words, self._found)))
            word = word[:_ROOM].ljust(end - start, b"\0") if self.in_place else word
            pieces += [seed[done:start], word]
            done = start + len(word) if self.in_place else end
        return b"".join((*pieces, seed[done:]))


def _span(data: bytes, random: Random) -> tuple[int, int]:
    start = random.randrange(len(data) + 1)
    return start, min(len(data), start + (1 << random.randrange(8)))


def _flip(data: bytes, random: Random) -> bytes:
    place = random.randrange(len(data) + 1)
    return data[:place] + bytes([random.getrandbits(8)]) + data[place + 1 :]


def _insert(data: bytes, random: Random) -> bytes:
    place = random.randrange(len(data) + 1)
    return data[:place] + random.randbytes(1 << random.randrange(5)) + data[place:]


def _delete(data: bytes, random: Random) -> bytes:
    start, end = _span(data, random)
    return data[:start] + data[end:]


def _repeat(data: bytes, random: Random) -> bytes:
    start, end = _span(data, random)
    return data[:start] + data[start:end] * (1 << random.randrange(1, 7)) + data[end:]


def _cut(data: bytes, random: Random) -> bytes:
    return data[: random.randrange(len(data) + 1)]


def _coarsen(data: bytes, random: Random) -> bytes:
    start, end = _span(data, random)
    return data[:start] + random.choice(_WORDS) + data[end:]


_EDITS = (_flip, _flip, _insert, _delete, _repeat, _cut, _coarsen)
