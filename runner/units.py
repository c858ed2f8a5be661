"""Sizes and durations as messages and options write them (protocol section 1)."""

from __future__ import annotations

import math
import re

_NUMBER = r"\d+(?:\.\d*)?|\.\d+"
_SIZE = re.compile(rf"\s*({_NUMBER})\s*([kmgtpe]?)(i?)(b?)\s*", re.IGNORECASE | re.ASCII)
_DURATION = re.compile(rf"({_NUMBER})(ns|us|µs|μs|ms|s|m|h|d)", re.ASCII)
_POWERS = {"": 0, "k": 1, "m": 2, "g": 3, "t": 4, "p": 5, "e": 6}
_SECONDS = {"ns": 1e-9, "us": 1e-6, "µs": 1e-6, "μs": 1e-6, "ms": 1e-3, "s": 1, "m": 60, "h": 3600, "d": 86400}

# Far beyond anything sensible, far below anything that overflows: an exbibyte, and a century.
_LARGEST_SIZE = 2**60
_LONGEST = 100 * 365.25 * 86400


def parse_size(value: str | int) -> int:
    """Return bytes: ``1024``, ``3gb`` and ``4G`` (powers of 1000), ``2 GiB`` (powers of 1024). Raises ValueError."""
    match = _SIZE.fullmatch(str(value)) if not isinstance(value, bool) else None
    if not match or (match[3] and not match[2]):
        raise ValueError(f"is {_shown(value)}, but must be a size such as 512mb or 2GiB")
    number: float = float(match[1]) * (1024 if match[3] else 1000) ** _POWERS[match[2].lower()]
    if number > _LARGEST_SIZE:
        raise ValueError(f"is {_shown(value)}, which is larger than any machine")
    return round(number)


def parse_duration(value: str | float) -> float:
    """Return seconds: Go's durations (``1h30m``, ``1.5h``, ``90s``), days (``2d``), bare numbers. Raises ValueError."""
    seconds = float(value) if isinstance(value, float) else _seconds(str(value).strip())
    if seconds is None or not 0 <= seconds <= _LONGEST:
        raise ValueError(f"is {_shown(value)}, but must be a duration such as 90s or 1h30m")
    return seconds


def _seconds(text: str) -> float | None:
    if re.fullmatch(_NUMBER, text, re.ASCII):
        return float(text)
    text = text.lower()  # as the client does
    if not text or _DURATION.sub("", text):
        return None
    return math.fsum(float(number) * _SECONDS[unit] for number, unit in _DURATION.findall(text))


def _shown(value: object) -> str:
    text = repr(value)
    return text if len(text) <= 60 else f"{text[:57]}..."


def format_size(size: int) -> str:
    """Write bytes as people read them: ``1.5 GiB``."""
    units = ("B", "KiB", "MiB", "GiB", "TiB", "PiB")
    power = min(max(0, (abs(size).bit_length() - 1) // 10), len(units) - 1)
    number = size / 1024**power
    return f"{number:.3g} {units[power]}" if number < 1000 else f"{number:.0f} {units[power]}"


def format_duration(seconds: float) -> str:
    """Write seconds as Go does, without needless zeros: ``1h30m``, ``2.5s``."""
    if seconds < 60:
        return f"{seconds:.3g}s"
    whole = round(seconds)
    parts = [(whole // 86400, "d"), (whole // 3600 % 24, "h"), (whole // 60 % 60, "m"), (whole % 60, "s")]
    return "".join(f"{number}{unit}" for number, unit in parts if number)
