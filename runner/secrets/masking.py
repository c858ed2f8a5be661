"""Finding secrets in text that goes out, in whatever form they are in it, and putting asterisks in their place."""

from __future__ import annotations

import hashlib
import os
import re
from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property

from runner.secrets.forms import forms_of

MASK = b"***"

# So much of one's beginning is not shown where its end never came.
_HALF = 4
# Literals of that length are found so fast one by one that they are looked for one by one; in bytes.
_LONG = 24
# More are looked for in a way that is slow, but not the slower the more there are.
_MANY = 150
# What every form of a secret is recognised by at first: so many bytes at its beginning, so many of its rarest.
_HEAD, _ANCHOR = 2, 3
_SELDOM = rb"[^a-z0-9 .,:;=_\-/()\[\]\"'\n\r\t\0]"
_SELDOM_TWICE, _SELDOM_ONCE = re.compile(_SELDOM * 2), re.compile(_SELDOM)

Span = tuple[int, int]


@dataclass(frozen=True)
class Literal:
    """A text that is looked for as it is."""

    text: bytes

    @property
    def head(self) -> bytes:
        """What it begins with."""
        return self.text[:_HEAD]

    @property
    def anchor(self) -> tuple[int, bytes]:
        """Some bytes of it, and where they begin: such as are seldom in other texts."""
        last = len(self.text) - _ANCHOR
        found = _SELDOM_TWICE.search(self.text, 0, last + 2) or _SELDOM_ONCE.search(self.text, 0, last + 1)
        offset = found.start() if found else 0
        return offset, self.text[offset : offset + _ANCHOR]

    @property
    def length(self) -> int:
        """In bytes."""
        return len(self.text)

    def at(self, data: bytes, start: int) -> bool:
        """Tell whether it is there."""
        return start >= 0 and data.startswith(self.text, start)

    def begins(self, rest: bytes) -> bool:
        """Tell whether data that ends with ``rest`` may go on so that it is there."""
        return self.text.startswith(rest)


@dataclass(frozen=True)
class Fingerprint:
    """A text that is looked for by who does not know it: by five bytes of it, its length, and a keyed hash."""

    head: bytes
    anchor: tuple[int, bytes]
    length: int
    digest: bytes
    key: bytes

    @classmethod
    def of(cls, literal: Literal, key: bytes) -> Fingerprint:
        """Take the fingerprint of a text."""
        return cls(literal.head, literal.anchor, literal.length, _digest(literal.text, key), key)

    @classmethod
    def from_row(cls, row: Sequence[str | int]) -> Fingerprint:
        """Read what ``to_row`` wrote."""
        head, anchor, digest, key = (bytes.fromhex(str(each)) for each in row[:4])
        return cls(head, (int(row[4]), anchor), int(row[5]), digest, key)

    def to_row(self) -> tuple[str | int, ...]:
        """Write it down, as JSON has it."""
        offset, anchor = self.anchor
        return self.head.hex(), anchor.hex(), self.digest.hex(), self.key.hex(), offset, self.length

    def at(self, data: bytes, start: int) -> bool:
        """See Literal."""
        end = start + self.length
        return start >= 0 and end <= len(data) and _digest(data[start:end], self.key) == self.digest

    def begins(self, rest: bytes) -> bool:
        """See Literal."""
        return len(rest) < self.length and (rest.startswith(self.head) or self.head.startswith(rest))


def _digest(text: bytes, key: bytes) -> bytes:
    return hashlib.blake2b(text, key=key, digest_size=16).digest()


class Secrets:
    """Texts to be found in others. None of them goes over the end of a line."""

    def __init__(self, patterns: Iterable[Literal | Fingerprint] = ()) -> None:
        self.patterns = tuple(dict.fromkeys(patterns))
        self.longest = max((each.length for each in self.patterns), default=0)
        # Of few, long literals are found fastest one by one; all others are looked for at once, by their anchors.
        self._many = len(self.patterns) > _MANY
        long = [each for each in self.patterns if isinstance(each, Literal) and each.length >= _LONG]
        self._whole = [] if self._many else [each.text for each in long]
        self._anchored: dict[bytes, list[tuple[int, Literal | Fingerprint]]] = defaultdict(list)
        self._heads: dict[bytes, list[Literal | Fingerprint]] = defaultdict(list)
        for each in self.patterns:
            offset, anchor = each.anchor
            if self._many or each not in long:
                self._anchored[anchor].append((offset, each))
            for size in range(1, _HEAD + 1):
                self._heads[each.head[:size]].append(each)

    @classmethod
    def of(cls, texts: Iterable[str]) -> Secrets:
        """Look for these, as they are, and URL-encoded, base64-encoded (also in the middle of more), or escaped."""
        return cls(Literal(each) for each in forms_of(texts))

    def __or__(self, other: Secrets) -> Secrets:
        return Secrets((*self.patterns, *other.patterns))

    def fingerprints(self) -> tuple[tuple[str | int, ...], ...]:
        """Return what finds the same texts but does not have them: rows for ``from_fingerprints``."""
        key = os.urandom(16)
        return tuple(Fingerprint.of(each, key).to_row() for each in self.patterns if isinstance(each, Literal))

    @classmethod
    def from_fingerprints(cls, rows: Iterable[Sequence[str | int]]) -> Secrets:
        """Read them."""
        return cls(map(Fingerprint.from_row, rows))

    def without(self, other: Secrets) -> Secrets:
        """Leave out the fingerprints of texts that the other one has."""
        return Secrets(each for each in self.patterns if not other._has(each))

    def _has(self, pattern: Literal | Fingerprint) -> bool:
        return any(
            each.length == pattern.length and isinstance(each, Literal) and pattern.at(each.text, 0)
            for each in self.patterns
        )

    def within(self, data: bytes) -> bool:
        """Tell whether there is one in it."""
        return next(self._places(data), None) is not None

    def mask(self, data: bytes) -> bytes:
        """Return it without them."""
        return _masked(data, self.spans(data)) if self.patterns else data

    def mask_text(self, text: str) -> str:
        """Return it without them."""
        data = text.encode(errors="surrogatepass")
        masked = self.mask(data)
        return text if masked is data else masked.decode(errors="replace")

    def spans(self, data: bytes) -> list[Span]:
        """Return where they are, in order; what overlaps is one."""
        merged: list[Span] = []
        for start, end in sorted(self._places(data)):
            if merged and start <= merged[-1][1]:
                merged[-1] = merged[-1][0], max(end, merged[-1][1])
            else:
                merged.append((start, end))
        return merged

    def unfinished(self, data: bytes, *, known: bool = False) -> int:
        """Return where the first one begins that may be there once there is more data; its end where there is none.

        ``known``: of those only that are more than fingerprints, which begin like much else.
        """
        line = 1 + max(data.rfind(b"\n"), data.rfind(b"\r"))
        for start in range(max(line, len(data) - self.longest + 1), len(data)):
            there = self._heads.get(data[start : start + _HEAD])
            if there and any(each.begins(data[start:]) for each in there if isinstance(each, Literal) or not known):
                return start
        return len(data)

    def _places(self, data: bytes) -> Iterator[Span]:
        for text in self._whole:
            start = data.find(text)
            while start >= 0:
                yield start, start + len(text)
                start = data.find(text, start + 1)
        for place in self._places_of_anchors(data):
            for offset, each in self._anchored[data[place : place + _ANCHOR]]:
                if each.at(data, place - offset):
                    yield place - offset, place - offset + each.length

    def _places_of_anchors(self, data: bytes) -> Iterator[int]:
        if self._many:
            anchored = self._anchored
            yield from (place for place in range(len(data)) if data[place : place + _ANCHOR] in anchored)
        elif self._anchored:
            match = self._anchors.search(data)
            while match:
                yield match.start()
                match = self._anchors.search(data, match.start() + 1)

    @cached_property
    def _anchors(self) -> re.Pattern[bytes]:
        """Match anchors; those that begin with the same byte are one branch, which is faster."""
        branches: dict[bytes, list[bytes]] = defaultdict(list)
        for anchor in sorted(self._anchored):
            branches[anchor[:1]].append(re.escape(anchor[1:]))
        return re.compile(b"|".join(re.escape(first) + b"(?:%s)" % b"|".join(rest) for first, rest in branches.items()))


NONE = Secrets()
"""No secrets."""


def _masked(data: bytes, spans: list[Span], known: int = 0) -> bytes:
    if not spans and not known:
        return data
    pieces, end = [], known
    for start, after in spans:
        pieces += [data[end:start], MASK]
        end = after
    return b"".join([*pieces, data[end:]])


class Stream:
    """A stream of text from which they are masked, however it is split: what may be the beginning of one waits.

    It waits for what comes next, be that for long: nobody hears half a secret. Nothing waits at the end of a line.
    """

    def __init__(self, secrets: Secrets) -> None:
        self._secrets = secrets
        self._held, self._known = b"", 0

    def feed(self, data: bytes) -> bytes:
        """Take what was read; return what may be shown by now."""
        if not self._secrets.patterns:
            return data
        data = self._held + data
        return self._shown(data, self._secrets.unfinished(data))

    def flush(self) -> bytes:
        """Return what is left, since nothing follows it; not the first half of a secret either."""
        held = self._held
        half = self._secrets.unfinished(held, known=True)
        cut = len(held) - half >= _HALF
        shown = self._shown(held, half if cut else len(held))
        self._held, self._known = b"", 0
        return shown + MASK if cut else shown

    def _shown(self, data: bytes, end: int) -> bytes:
        # A secret that was found may reach into what waits, where another one may begin. Its mask has been shown then.
        known, spans = self._known, []
        for start, after in self._secrets.spans(data):
            if start <= known > 0:
                known = max(known, after)
            elif start < end:
                spans.append((start, after))
        self._known = max(0, max((known, *(after for _, after in spans))) - end)
        self._held = data[end:]
        return _masked(data[:end], spans, known)


class Search:
    """Looks for them in a stream that is not text, and is not changed."""

    def __init__(self, secrets: Secrets) -> None:
        self._secrets, self._tail = secrets, b""

    def found(self, data: bytes) -> bool:
        """Take the next bytes; tell whether one has come to its end in them."""
        if not self._secrets.patterns:
            return False
        data = self._tail + data
        self._tail = data[max(0, len(data) - self._secrets.longest + 1) :]
        return self._secrets.within(data)
