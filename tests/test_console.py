"""The experiment's log: every byte in the file, every line to the listener."""

from __future__ import annotations

from pathlib import Path

from runner.attempt.console import LONGEST_LINE, STDERR, Console


def written(path: Path, *pieces: bytes) -> list[str]:
    heard: list[str] = []
    with Console(path, lambda line, _stream: heard.append(line)) as console:
        for piece in pieces:
            console.feed(piece)
    return heard


def test_every_byte_is_kept_and_every_line_heard(tmp_path: Path) -> None:
    path = tmp_path / "output" / "output"
    assert written(path, b"one\ntw", b"o\r\n\n\xff", b"\nlast") == ["one", "two", "", "\ufffd", "last"]
    assert path.read_bytes() == b"one\ntwo\r\n\n\xff\nlast"


def test_a_second_attempt_appends(tmp_path: Path) -> None:
    path = tmp_path / "output"
    path.write_bytes(b"before\n")
    written(path, b"after\n")
    assert path.read_bytes() == b"before\nafter\n"


def test_a_line_without_end_is_heard_in_pieces_of_bounded_length(tmp_path: Path) -> None:
    heard = written(tmp_path / "output", *[b"x" * 65536] * 40)
    assert sum(map(len, heard)) == 40 * 65536
    assert max(map(len, heard)) <= LONGEST_LINE + 65536


def test_the_runners_own_words_have_a_line_of_their_own(tmp_path: Path) -> None:
    heard: list[str] = []
    with Console(tmp_path / "output", lambda line, _stream: heard.append(line)) as console:
        console.feed(b"half a line")
        console.say("it failed")
    assert heard == ["half a line", "studio-runner: it failed"]


def test_lines_of_two_streams_do_not_mix(tmp_path: Path) -> None:
    heard: list[tuple[str, str]] = []
    with Console(tmp_path / "output", lambda *line: heard.append(line)) as console:
        console.feed(b"out")
        console.feed(b"err", STDERR)
        console.feed(b"put\n")
        console.say("it failed")
    assert heard == [("output", "stdout"), ("err", "stderr"), ("studio-runner: it failed", "stdout")]


def test_of_a_line_that_is_overwritten_the_last_state_is_heard_and_meanwhile_now_and_then(tmp_path: Path) -> None:
    now = [100.0]
    heard: list[str] = []
    with Console(tmp_path / "output", lambda line, _stream: heard.append(line), clock=lambda: now[0]) as console:
        for percent in range(0, 101, 10):
            console.feed(f"\r{percent} %".encode())
            now[0] += 3
        assert heard == ["0 %", "40 %", "80 %"]
        console.feed(b"\nnext\r")
        assert heard[3:] == ["100 %"]
        console.feed(b"\n")
        assert heard[4:] == ["next"], "a line that ends with both is one line"
    assert b"\r70 %\r80 %" in (tmp_path / "output").read_bytes(), "the file has it all"


def test_a_line_of_100_megabytes_takes_little_memory(tmp_path: Path) -> None:
    lengths: list[int] = []
    with Console(tmp_path / "output", lambda line, _stream: lengths.append(len(line))) as console:
        for _ in range(1600):
            console.feed(b"x" * 65536)
    assert sum(lengths) == 1600 * 65536
    assert max(lengths) <= LONGEST_LINE + 65536
    assert (tmp_path / "output").stat().st_size == 1600 * 65536
