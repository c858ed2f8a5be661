"""Sizes and durations."""

from __future__ import annotations

import pytest

from runner.units import format_duration, format_size, parse_duration, parse_size


@pytest.mark.parametrize(
    ("text", "size"),
    [
        ("1024", 1024),
        (1024, 1024),
        (0, 0),
        ("3gb", 3 * 1000**3),
        ("2 GiB", 2 * 1024**3),
        ("512mb", 512 * 1000**2),
        ("512m", 512 * 1000**2),
        ("64mib", 64 * 1024**2),
        ("1tb", 1000**4),
        ("4G", 4 * 1000**3),
        ("8g", 8 * 1000**3),
        ("20Gb", 20 * 1000**3),
        ("1.5kib", 1536),
        ("7b", 7),
    ],
)
def test_sizes(text: str | int, size: int) -> None:
    assert parse_size(text) == size


@pytest.mark.parametrize(
    "text", ["", "much", "-1", "1 x", "1ib", "nan", "inf", "1e9", "9" * 400, "1 gb 2", True, "٣gb", None]
)
def test_what_is_no_size(text: str) -> None:
    with pytest.raises(ValueError, match="is "):
        parse_size(text)


@pytest.mark.parametrize(
    ("text", "seconds"),
    [
        ("1h30m", 5400),
        ("1.5h", 5400),
        ("90s", 90),
        ("2d", 172800),
        ("1d12h", 129600),
        ("250ms", 0.25),
        ("20M", 1200),
        ("1H30m", 5400),
        ("10us", 1e-5),
        ("10µs", 1e-5),
        ("5ns", 5e-9),
        ("30", 30),
        (30, 30),
        (2.5, 2.5),
        ("0", 0),
    ],
)
def test_durations(text: str | float, seconds: float) -> None:
    assert parse_duration(text) == pytest.approx(seconds)


@pytest.mark.parametrize(
    "text",
    ["", "soon", "-5s", -5, "1h 30m", "5x", "h", float("nan"), float("inf"), 10**400, "9" * 400, True, "1m-1s", None],
)
def test_what_is_no_duration(text: str) -> None:
    with pytest.raises(ValueError, match="is "):
        parse_duration(text)


def test_people_read_them() -> None:
    assert [format_size(size) for size in (0, 1000, 1536, 3 * 1000**3, 2**50)] == [
        "0 B",
        "1000 B",
        "1.5 KiB",
        "2.79 GiB",
        "1 PiB",
    ]
    assert [format_duration(seconds) for seconds in (0, 2.5, 59.94, 60, 5400, 172800, 90061)] == [
        "0s",
        "2.5s",
        "59.9s",
        "1m",
        "1h30m",
        "2d",
        "1d1h1m1s",
    ]
