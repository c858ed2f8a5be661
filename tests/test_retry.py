from __future__ import annotations

from itertools import islice

import pytest

from runner.errors import MachineError, Unavailable
from runner.retry import Patience, call


class Time:
    """A clock that only sleeping moves."""

    def __init__(self) -> None:
        self.now = 1000.0
        self.slept: list[float] = []

    def clock(self) -> float:
        return self.now

    def sleep(self, seconds: float) -> None:
        self.slept.append(seconds)
        self.now += seconds


class Service:
    """Fails so many times, with one error, then answers."""

    def __init__(self, failures: float, error: type[Exception] = Unavailable) -> None:
        self.failures, self.error, self.calls = failures, error, 0

    def __call__(self) -> str:
        self.calls += 1
        if self.calls <= self.failures:
            raise self.error(f"failure {self.calls}")
        return "answer"


def test_an_action_that_works_is_called_once_and_nobody_sleeps() -> None:
    time, service = Time(), Service(failures=0)
    assert call(service, Patience(total=10), sleep=time.sleep, clock=time.clock) == "answer"
    assert (service.calls, time.slept) == (1, [])


def test_an_unavailable_service_is_asked_again_until_it_answers() -> None:
    time, service = Time(), Service(failures=3)
    assert call(service, Patience(total=60), sleep=time.sleep, clock=time.clock) == "answer"
    assert service.calls == 4
    assert len(time.slept) == 3


def test_the_last_error_is_raised_when_patience_ends_and_never_later() -> None:
    time, service = Time(), Service(failures=float("inf"))
    with pytest.raises(Unavailable) as raised:
        call(service, Patience(total=100, first=1, longest=10), sleep=time.sleep, clock=time.clock)
    assert str(raised.value) == f"failure {service.calls}"
    assert service.calls > 10
    assert time.now == pytest.approx(1100)


def test_no_patience_means_one_try() -> None:
    time, service = Time(), Service(failures=1)
    with pytest.raises(Unavailable):
        call(service, Patience(total=0), sleep=time.sleep, clock=time.clock)
    assert (service.calls, time.slept) == (1, [])


def test_other_errors_are_not_tried_again() -> None:
    time, service = Time(), Service(failures=1, error=MachineError)
    with pytest.raises(MachineError):
        call(service, Patience(total=10), sleep=time.sleep, clock=time.clock)
    assert service.calls == 1


def test_delays_double_up_to_the_longest() -> None:
    assert list(islice(Patience(60, first=1, longest=5).delays(jitter=lambda: 0.0), 5)) == [1, 2, 4, 5, 5]


def test_jitter_shortens_a_delay_by_half_at_most() -> None:
    assert list(islice(Patience(60, first=1, longest=5).delays(jitter=lambda: 1.0), 3)) == [0.5, 1, 2]
    assert all(0.5 <= delay <= 1 for delay in islice(Patience(60, first=1, longest=1).delays(), 100))
