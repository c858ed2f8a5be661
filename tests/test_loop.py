"""One selector: descriptors, timers, calls from other threads."""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Iterator

import pytest

from runner.loop import Loop
from tests.loops import Clock


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def loop(clock: Clock) -> Iterator[Loop]:
    made = Loop(clock)
    yield made
    made.close()


@pytest.fixture
def pipe() -> Iterator[tuple[int, int]]:
    reader, writer = os.pipe()
    yield reader, writer
    for fd in (reader, writer):
        os.close(fd)


def test_a_handler_is_called_when_its_descriptor_is_ready(loop: Loop, pipe: tuple[int, int]) -> None:
    seen: list[tuple[int, int]] = []
    loop.add_handler(pipe[0], lambda fd, events: seen.append((fd, events)), loop.READ)
    loop.run_once(0)
    assert not seen
    os.write(pipe[1], b"x")
    loop.run_once(10)
    assert seen == [(pipe[0], loop.READ)]
    loop.remove_handler(pipe[0])
    loop.remove_handler(pipe[0])
    loop.run_once(0)
    assert len(seen) == 1


def test_what_a_descriptor_is_watched_for_can_change(loop: Loop, pipe: tuple[int, int]) -> None:
    seen: list[int] = []
    loop.add_handler(pipe[1], lambda fd, events: seen.append(events), loop.READ)
    loop.run_once(0)
    loop.update_handler(pipe[1], loop.WRITE | loop.ERROR)
    loop.run_once(0)
    assert seen == [loop.WRITE]


def test_a_handler_may_remove_another_that_is_ready_too(loop: Loop) -> None:
    pipes = [os.pipe() for _ in range(2)]
    seen: list[int] = []

    def only_one(fd: int, _events: int) -> None:
        seen.append(fd)
        for reader, _ in pipes:
            loop.remove_handler(reader)

    for reader, writer in pipes:
        loop.add_handler(reader, only_one, loop.READ)
        os.write(writer, b"x")
    loop.run_once(0)
    assert len(seen) == 1
    for fds in pipes:
        for fd in fds:
            os.close(fd)


def test_timers_are_called_once_in_the_order_in_which_they_are_due(loop: Loop, clock: Clock) -> None:
    seen: list[str] = []
    loop.call_later(2, lambda: seen.append("later"))
    loop.call_later(1, lambda: seen.append("sooner"))
    removed = loop.call_later(1, lambda: seen.append("never"))
    loop.remove_timeout(removed)
    loop.run_once(0)
    assert seen == []
    clock.now += 5
    loop.run_once(10)
    loop.run_once(0)
    assert seen == ["sooner", "later"]
    loop.remove_timeout(removed)


def test_waiting_ends_when_a_timer_is_due() -> None:
    loop = Loop()
    seen: list[bool] = []
    loop.call_later(0.05, lambda: seen.append(True))
    begun = time.monotonic()
    while not seen:
        loop.run_once(30)
    assert time.monotonic() - begun < 20
    loop.close()


def test_another_thread_wakes_the_loop(loop: Loop) -> None:
    seen: list[str] = []
    thread = threading.Timer(0.05, lambda: loop.add_callback(lambda: seen.append(threading.current_thread().name)))
    thread.start()
    begun = time.monotonic()
    while not seen:
        loop.run_once(30)
    thread.join()
    assert seen == [threading.main_thread().name]
    assert time.monotonic() - begun < 20


def test_a_callback_that_adds_itself_again_does_not_hold_the_loop(loop: Loop) -> None:
    calls: list[int] = []

    def again() -> None:
        calls.append(1)
        loop.add_callback(again)

    loop.add_callback(again)
    loop.run_once(10)
    loop.run_once(10)
    assert 1 <= len(calls) <= 3


def test_the_loop_goes_on_after_a_handler_failed(loop: Loop) -> None:
    seen: list[int] = []
    loop.add_callback(lambda: 1 / 0)
    loop.add_callback(lambda: seen.append(1))
    with pytest.raises(ZeroDivisionError):
        loop.run_once(0)
    loop.run_once(0)
    assert seen == [1]
