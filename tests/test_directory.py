"""What is special about queues that are directories."""

from __future__ import annotations

import fcntl
import os
import tempfile
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from runner.errors import Unavailable
from runner.queues import files, matcher
from runner.queues.files import Directory
from tests.servers.disk import small_disk


class Now:
    def __init__(self, root: Path) -> None:
        self.root, self.later = root, 0.0

    def __call__(self) -> float:
        return max(path.stat().st_mtime for path in self.root.rglob("*")) + self.later


@pytest.fixture
def queue(tmp_path: Path) -> Path:
    path = tmp_path / "root" / "local_q"
    path.mkdir(parents=True)
    return path


@pytest.fixture
def server() -> Iterator[Callable[..., Directory]]:
    made: list[Directory] = []

    def make(queue: Path, now: Now | None = None) -> Directory:
        made.append(Directory(queue.parent, matcher("^local_", ""), now=now or Now(queue.parent)))
        return made[-1]

    yield make
    for each in made:
        each.close()


def test_only_messages_are_taken(queue: Path, server: Callable[..., Directory]) -> None:
    for name in ("lock.lock", ".hidden", "half.tmp", "empty"):
        (queue / name).write_text("" if name == "empty" else "{}")
    (queue / "directory").mkdir()
    (queue / "link").symlink_to("lock.lock")
    os.mkfifo(queue / "pipe")
    assert server(queue).take("local_q") is None


def test_the_oldest_comes_first(queue: Path, server: Callable[..., Directory]) -> None:
    for name, age in (("b", 10), ("a", 20), ("c", 10)):
        (queue / name).write_text(f'"{name}"')
        os.utime(queue / name, (1e9 - age, 1e9 - age))
    looking = server(queue)
    held = [looking.take("local_q") for _ in range(3)]
    assert [delivery.body for delivery in held if delivery] == [b'"a"', b'"b"', b'"c"']


def test_a_half_written_message_is_left_until_it_is_old(queue: Path, server: Callable[..., Directory]) -> None:
    (queue / "half").write_text('{"experiment": ')
    now = Now(queue.parent)
    looking = server(queue, now)
    assert looking.take("local_q") is None
    now.later = 9
    assert looking.take("local_q") is None
    now.later = 11
    delivery = looking.take("local_q")
    assert delivery is not None
    assert delivery.body == b'{"experiment": '


def test_nothing_is_taken_while_a_client_holds_its_lock(queue: Path, server: Callable[..., Directory]) -> None:
    (queue / "message").write_text("{}")
    with (queue / "lock.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        assert server(queue).take("local_q") is None
        fcntl.flock(lock, fcntl.LOCK_UN)
        assert server(queue).take("local_q") is not None


def test_a_message_that_was_settled_while_it_was_opened_is_not_taken_twice(queue: Path) -> None:
    """Eight threads fight for two hundred messages: each is taken once."""
    for number in range(200):
        (queue / f"{number:03}").write_text(f'"{number}"')
    taken: list[bytes] = []

    def work() -> None:
        looking = Directory(queue.parent, matcher(".", ""))
        while any(queue.iterdir()):
            if delivery := looking.take("local_q"):
                taken.append(delivery.body)
                delivery.ack()

    threads = [threading.Thread(target=work) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(taken) == sorted(f'"{number}"'.encode() for number in range(200))


def test_without_a_place_for_the_dead_a_refused_message_is_removed(
    queue: Path, server: Callable[..., Directory]
) -> None:
    (queue / "message").write_text("{}")
    delivery = server(queue).take("local_q")
    assert delivery is not None
    delivery.refuse()
    assert not list(queue.iterdir())


def test_directories_that_come_and_go_are_no_trouble(queue: Path, server: Callable[..., Directory]) -> None:
    looking = server(queue)
    assert looking.queues() == ["local_q"]
    queue.rmdir()
    assert looking.take("local_q") is None
    queue.parent.rmdir()
    assert looking.queues() == []


@contextmanager
def powerless() -> Iterator[None]:
    """Be somebody whom permissions count for."""
    if os.geteuid() == 0:
        os.seteuid(65534)
        try:
            yield
        finally:
            os.seteuid(0)
    else:
        yield


@pytest.fixture
def shut() -> Iterator[Path]:
    """A queue that nobody but its owner may write to."""
    with tempfile.TemporaryDirectory() as root:  # the way to pytest's own is barred to others
        path = Path(root) / "local_q"
        path.mkdir()
        Path(root).chmod(0o755)
        yield path


def test_a_message_that_cannot_be_removed_is_not_taken_again(
    shut: Path, server: Callable[..., Directory], caplog: pytest.LogCaptureFixture
) -> None:
    for name in ("bad", "done"):
        (shut / name).write_text("{}")
    shut.chmod(0o555)
    looking = server(shut)
    with powerless():
        first, second = looking.take("local_q"), looking.take("local_q")
        assert first and second
        first.refuse()
        second.ack()
        assert [looking.take("local_q") for _ in range(3)] == [None] * 3
    assert caplog.text.count("cannot be taken out of its queue") == 2
    shut.chmod(0o777)
    with powerless():
        assert looking.take("local_q") is None
    assert not list(shut.iterdir()), "what was owed is done"
    (shut / "bad").write_text("{}")
    assert looking.take("local_q"), "a new message is one, whatever its name"


def test_a_grave_that_cannot_be_used_costs_nothing_but_an_error(
    queue: Path, server: Callable[..., Directory], caplog: pytest.LogCaptureFixture
) -> None:
    (queue / ".dead" / "bad").mkdir(parents=True)
    (queue / "bad").write_text("{}")
    looking = server(queue)
    delivery = looking.take("local_q")
    assert delivery
    delivery.refuse()
    assert "cannot be taken out of its queue" in caplog.text
    assert looking.take("local_q") is None


def test_what_may_not_be_looked_at_is_not_deleted(shut: Path, server: Callable[..., Directory]) -> None:
    looking = server(shut)
    shut.parent.chmod(0o600)
    with powerless():
        assert not looking.deleted("local_q")
        assert looking.queues() == []
    shut.parent.chmod(0o755)
    assert not looking.deleted("local_q")
    shut.rmdir()
    assert looking.deleted("local_q")


def test_a_message_that_may_not_be_read_is_told_once(
    shut: Path, server: Callable[..., Directory], caplog: pytest.LogCaptureFixture
) -> None:
    (shut / "secret").write_text("{}")
    (shut / "secret").chmod(0o600)
    looking = server(shut)
    with powerless():
        assert [looking.take("local_q") for _ in range(3)] == [None] * 3
    assert caplog.text.count("secret cannot be taken") == 1


def test_a_link_in_a_circle_hides_no_queue(queue: Path, server: Callable[..., Directory]) -> None:
    (queue.parent / "local_loop").symlink_to("local_loop")
    assert server(queue).queues() == ["local_q"]


def test_a_name_that_is_no_text_is_none_of_a_queue(queue: Path, server: Callable[..., Directory]) -> None:
    """It could be no label of a metric, and none of the others could be read then."""
    (queue.parent / os.fsdecode(b"local_\xff")).mkdir()
    assert server(queue).queues() == ["local_q"]


def test_a_full_disk_leaves_no_drafts(queue: Path, server: Callable[..., Directory]) -> None:
    looking = server(queue)
    with small_disk(queue, "64k"):
        assert [looking.publish("local_q", bytes(100_000)) for _ in range(3)] == [False] * 3
        assert not list(queue.iterdir())
        assert looking.publish("local_q", bytes(1000))


def test_publishing_where_nothing_can_be_written_is_told(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(Unavailable, match="cannot be written"):
        files.publish(tmp_path / "file", "local_q", b"{}")


@pytest.mark.parametrize(
    ("name", "wanted"),
    [("rmq_a", True), ("sqs_b", True), ("other", False), ("rmq_a_response", False), ("rmq_no", False)],
)
def test_names_decide_which_queues_are_read(name: str, wanted: bool) -> None:
    assert matcher("^(rmq|sqs|local)_.*$", "no$")(name) is wanted
