"""Objects that come in parts, from stores whose connections break, give too much, or stand still."""

from __future__ import annotations

import os
import threading
from collections.abc import Iterator
from contextlib import closing, contextmanager
from types import SimpleNamespace

import pytest

from runner.errors import Unavailable
from runner.retry import Patience
from runner.storage import ranges
from runner.storage.ranges import Changed, Part, Ranges
from tests.e2e.harness import until
from tests.loops import Clock

SIZE = 1000


class Body:
    """An Opened of some bytes; it breaks after ``most`` of them, or waits to be aborted where ``most`` is None."""

    def __init__(self, data: bytes, most: int | None) -> None:
        self._data, self._left = memoryview(data), most
        self._aborted = threading.Event()

    def read(self, size: int = -1, /) -> bytes:
        if self._left is None:
            self._aborted.wait(60)
        if not self._left:
            raise Unavailable("it broke")
        data = bytes(self._data[: min(size, self._left)])
        self._data, self._left = self._data[len(data) :], self._left - len(data)
        return data

    gather = read

    def abort(self) -> None:
        self._aborted.set()


class Shop:
    """An object whose connections break after ``most`` bytes. ``asked``: ranges; ``served``: those that are over."""

    def __init__(self, data: bytes, most: int | None = 10**9) -> None:
        self.data, self.most = data, most
        self.asked: list[tuple[int, int]] = []
        self.served: list[tuple[int, int]] = []

    @contextmanager
    def fetch(self, start: int, end: int) -> Iterator[Body]:
        self.asked.append((start, end))
        try:
            yield Body(self.data[start:end], self.most)
        finally:
            self.served.append((start, end))


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    """Time goes on only while somebody sleeps; parts are small."""
    made = Clock()
    monkeypatch.setattr(ranges, "time", SimpleNamespace(monotonic=made))
    monkeypatch.setattr(ranges, "PART", SIZE)
    return made


def part(shop: Shop, clock: Clock, bounds: tuple[int, int], patience: float, body: Body | None = None) -> Part:
    def sleep(seconds: float) -> None:
        clock.now += seconds

    return Part(shop.fetch, bounds, patience=Patience(patience, first=1, longest=1), sleep=sleep, body=body)


def test_a_part_goes_on_where_it_broke(clock: Clock) -> None:
    shop = Shop(os.urandom(SIZE), most=300)
    assert part(shop, clock, (50, 950), 60).read() == shop.data[50:950]
    assert shop.asked == [(50, 950), (350, 950), (650, 950)]


def test_patience_ends_where_only_a_trickle_comes(clock: Clock) -> None:
    shop, began = Shop(os.urandom(SIZE), most=1), clock.now
    with pytest.raises(Unavailable, match="it broke"):
        part(shop, clock, (0, SIZE), 10).read()
    assert 9 <= clock.now - began <= 10
    assert len(shop.asked) < 25


def test_patience_is_not_for_a_whole_object_but_for_each_part_of_it(clock: Clock) -> None:
    shop, began = Shop(os.urandom(20 * SIZE), most=SIZE + 1), clock.now
    assert part(shop, clock, (0, 20 * SIZE), 1).read() == shop.data
    assert clock.now - began > 5


def test_what_is_no_part_of_it_is_not_taken(clock: Clock) -> None:
    shop = Shop(os.urandom(SIZE))
    assert part(shop, clock, (0, 100), 10, Body(shop.data, 10**9)).read(SIZE) == shop.data[:100]


def test_an_answer_that_ends_too_early_is_a_break(clock: Clock) -> None:
    shop = Shop(os.urandom(SIZE))
    short = Body(shop.data[:400], 10**9)
    assert part(shop, clock, (0, SIZE), 10, short).read() == shop.data
    assert shop.asked == [(400, SIZE)]


def test_an_object_that_was_replaced_is_not_asked_for_again(clock: Clock) -> None:
    asked: list[int] = []

    def fetch(start: int, _end: int) -> Body:
        asked.append(start)
        raise Changed("it was replaced")

    with pytest.raises(Changed):
        Part(fetch, (0, SIZE), patience=Patience(60), sleep=lambda _: None).read()  # type: ignore[arg-type]
    assert asked == [0]


@pytest.fixture
def slow(monkeypatch: pytest.MonkeyPatch) -> None:
    """No connection is fast enough: what follows the first part comes over many."""
    monkeypatch.setattr(ranges, "PART", SIZE)
    monkeypatch.setattr(ranges, "_FAST", 1e18)


def opened(shop: Shop) -> Ranges:
    head = Body(shop.data[:SIZE], 10**9)
    return Ranges(shop.fetch, head, len(shop.data), patience=Patience(5, first=0.01), pause=lambda _: None)


@pytest.mark.usefixtures("slow")
def test_what_comes_over_many_connections_is_in_order_however_slowly_it_is_read() -> None:
    shop = Shop(os.urandom(30 * SIZE + 7))
    with closing(opened(shop)) as stream:
        got = b""
        while data := stream.read(SIZE // 2):
            got += data
            reading = (len(got) - 1) // SIZE
            ahead = min(reading + 8, 30) if reading else 0
            until(lambda ahead=ahead: len(shop.served) == ahead, "what is asked for ahead is there")
    assert got == shop.data


@pytest.mark.usefixtures("slow")
@pytest.mark.parametrize("size", [0, 1, SIZE - 1, SIZE, SIZE + 1, 2 * SIZE, 2 * SIZE + 1, 9 * SIZE, 12 * SIZE])
def test_all_of_an_object_comes_whatever_its_size(size: int) -> None:
    shop = Shop(os.urandom(size))
    with closing(opened(shop)) as stream:
        assert b"".join(iter(lambda: stream.read(SIZE // 3), b"")) == shop.data
        assert stream.read(1) == b""


@pytest.mark.usefixtures("slow")
def test_no_more_is_asked_for_than_there_is_room_for() -> None:
    shop = Shop(os.urandom(30 * SIZE))
    with closing(opened(shop)) as stream:
        assert len(stream.read(SIZE)) == SIZE
        assert shop.asked == []
        stream.read(1)
        until(lambda: len(shop.served) == len(shop.asked) == 9, "the part that is read, and eight more")


@pytest.mark.usefixtures("slow")
def test_closing_breaks_off_what_stands_still() -> None:
    shop = Shop(os.urandom(30 * SIZE))
    stream = opened(shop)
    stream.read(SIZE)
    stream.read(1)
    until(lambda: len(shop.served) == len(shop.asked) == 9, "all that was asked for is there")
    shop.most = None
    for _ in range(2):
        stream.read(SIZE)
    until(lambda: len(shop.asked) > len(shop.served), "something stands still")
    closer = threading.Thread(target=stream.close)
    closer.start()
    closer.join(30)
    assert not closer.is_alive()
    assert len(shop.served) == len(shop.asked)


class Paced(Shop):
    """Reading before the byte ``slow_at`` takes no time, and a second for each piece from there on."""

    def __init__(self, data: bytes, clock: Clock, slow_at: int) -> None:
        super().__init__(data)
        self._clock, self._slow_at = clock, slow_at

    @contextmanager
    def fetch(self, start: int, end: int) -> Iterator[Body]:
        with super().fetch(start, end) as body:
            plain = body.read

            def read(size: int = -1, /) -> bytes:
                nonlocal start
                data = plain(size)
                start += len(data)
                self._clock.now += 1 if start > self._slow_at else 0
                return data

            body.read = read  # type: ignore[method-assign]
            yield body


@pytest.mark.parametrize(
    ("slow_at", "asked"),
    [
        pytest.param(50 * SIZE, [(SIZE, 50 * SIZE)], id="for the rest, if it stays fast"),
        pytest.param(25 * SIZE, [(SIZE, 50 * SIZE), (33 * SIZE, 34 * SIZE)], id="until it is slow"),
        pytest.param(47 * SIZE, [(SIZE, 50 * SIZE)], id="for the little that is left"),
    ],
)
def test_one_connection_is_asked(
    clock: Clock, monkeypatch: pytest.MonkeyPatch, slow_at: int, asked: list[tuple[int, int]]
) -> None:
    monkeypatch.setattr(ranges, "_STRETCH", 16 * SIZE)
    shop, got = Paced(os.urandom(50 * SIZE), clock, slow_at), b""
    with closing(opened(shop)) as stream:
        while data := stream.read(SIZE // 2):
            got += data
    assert got == shop.data
    assert shop.asked[:2] == asked
