"""The address for metrics, health and the page: what it answers, to whom, and that it holds nobody up."""

from __future__ import annotations

import html
import http.client
import json
import os
import re
import shutil
import socket
import subprocess
import time
from collections.abc import Iterator
from contextlib import closing
from dataclasses import replace
from pathlib import Path
from threading import Event, Thread
from typing import Any

import pytest

from runner.commands import top
from runner.errors import ConfigError, Unavailable
from runner.events import Finished
from runner.loop import Loop
from runner.machine.allocate import Allocator, Need, Resources
from runner.machine.gpus import Card, Gpus, Wish
from runner.monitoring import web
from runner.monitoring.board import Board
from runner.monitoring.journal import Journal
from runner.monitoring.metrics import Metrics
from runner.monitoring.status import Bar, Experiment, Outcome, Queue, Snapshot, Source, Status, bars, tail
from runner.monitoring.web import Site, Web

HOSTILE = "<img src=x onerror=\"document.title='pwned'\"></script><script>document.title='pwned'</script>&amp;\x1b[31m"
STATUS = Status(
    version="1",
    host="node",
    process=7,
    time=time.time(),
    started=time.time() - 60,
    idle="",
    bars=(Bar("cores", 1, 2), Bar("GPU 0 (Tesla V100)", 4, 16, "slots", "is used by others")),
    experiments=(Experiment("rmq_q", "rmq", HOSTILE, HOSTILE, 1, "run", time.time(), time.time(), "1 cpus"),),
    queues=(Queue("rmq_q", "rmq", running=1, why=HOSTILE),),
    sources=(Source("broker", "rmq", 1, 0, ""),),
    outcomes=(Outcome(time.time(), "rmq_q", HOSTILE, 1, "failed", "script", HOSTILE, 2.5, "given back"),),
)


class Shown:
    """A loop that shows a status, and a server that asks it."""

    def __init__(self, status: Status) -> None:
        self.status = status
        self.loop = Loop()
        self.board = Board(self.loop, patience=1.0)
        self.board.show(lambda: Snapshot(self.status, ()))
        self.webs: list[Web] = []

    def web(self, address: str = "127.0.0.1:0", *, page: bool = False) -> str:
        self.webs.append(Web(address, self.board, page=page))
        return self.webs[-1].address


@pytest.fixture
def shown() -> Iterator[Shown]:
    made, over = Shown(STATUS), Event()

    def run() -> None:
        while not over.is_set():
            made.loop.run_once(0.05)

    thread = Thread(target=run)
    thread.start()
    yield made
    over.set()
    thread.join()
    for each in made.webs:
        each.close()
    made.loop.close()


def get(where: str, path: str, *, method: str = "GET", host: str = "") -> tuple[int, str, dict[str, str]]:
    with closing(http.client.HTTPConnection(where, timeout=10)) as connection:
        connection.request(method, path, headers={"Host": host} if host else {})
        answer = connection.getresponse()
        return answer.status, answer.read().decode(), dict(answer.getheaders())


def test_health_is_that_of_the_loop() -> None:
    now = [1000.0]
    with closing(Loop()) as loop:
        site = Site(Board(loop, lambda: now[0]), page=False)
        assert site.answer("/healthz").status == 200
        now[0] += 31
        answer = site.answer("/healthz")
        assert (answer.status, answer.body) == (503, b"the runner's loop hangs\n")


def test_ready_is_who_takes_work_from_queues_that_can_be_reached(shown: Shown) -> None:
    where = shown.web()
    assert get(where, "/readyz")[:2] == (200, "ok\n")
    away = Source("RabbitMQ at b:5672", "rmq", 1, 3, "connection refused")
    shown.status = replace(STATUS, idle="stopping", sources=(away,))
    time.sleep(0.25)  # for so long a snapshot is good enough
    assert get(where, "/readyz")[:2] == (503, "takes no work: stopping; RabbitMQ at b:5672: connection refused\n")


def test_a_loop_that_has_no_time_keeps_nobody_waiting_for_long() -> None:
    with closing(Loop()) as loop:
        board = Board(loop, patience=0.1)
        board.show(lambda: Snapshot(STATUS, ()))
        assert Site(board, page=True).answer("/metrics").status == 503


def test_a_mistake_in_a_snapshot_is_the_askers_and_not_the_loops(shown: Shown) -> None:
    def broken() -> Snapshot:
        raise KeyError("oh")

    shown.board.show(broken)
    with pytest.raises(http.client.RemoteDisconnected):
        get(shown.web(), "/metrics")
    shown.board.show(lambda: Snapshot(STATUS, ()))
    assert get(shown.web(), "/metrics")[0] == 200


def test_metrics_are_there_for_everybody_and_the_page_is_not(shown: Shown) -> None:
    everybody = shown.web(":0")
    status, text, headers = get(everybody, "/metrics", host="runner.example:9090")
    assert status == 200
    assert "runner_cores" in text
    assert headers["Content-Type"].startswith("text/plain; version=0.0.4")
    for path in ("/", "/status.json"):
        status, text, _ = get(everybody, path)
        assert status == 403
        assert "--status-page" in text
        assert "onerror" not in text
        assert get(shown.web(":0", page=True), path, host="runner.example")[0] == 200
        assert get(shown.web(), path)[0] == 200


def test_no_web_site_can_have_a_browser_read_what_only_this_machine_may(shown: Shown) -> None:
    where = shown.web()
    for host in ("evil.example", "evil.example:9090", "localhost.evil.example", "127.0.0.1.evil.example"):
        assert get(where, "/status.json", host=host)[0] == 421
    for host in ("localhost", "localhost:9090", "127.0.0.1:1", "[::1]:9090"):
        assert get(where, "/status.json", host=host)[0] == 200


def test_it_only_reads(shown: Shown) -> None:
    where = shown.web()
    for method in ("POST", "PUT", "DELETE"):
        assert get(where, "/", method=method)[0] == 501
    status, text, headers = get(where, "/", method="HEAD")
    assert (status, text) == (200, "")
    assert int(headers["Content-Length"]) > 1000
    for path in ("/etc/passwd", "/../../etc/passwd", "/status.json/"):
        assert get(where, path)[0] == 404


def test_idle_clients_are_hung_up_on_when_they_are_too_many(shown: Shown) -> None:
    host, _, port = shown.web().partition(":")
    clients = [socket.create_connection((host, int(port)), timeout=10) for _ in range(17)]
    try:
        assert clients[-1].recv(1) == b""
    finally:
        for client in clients:
            client.close()
    end = time.monotonic() + 10
    while time.monotonic() < end:
        try:
            assert get(f"{host}:{port}", "/healthz")[0] == 200
            break
        except (OSError, http.client.HTTPException):
            time.sleep(0.05)
    else:
        pytest.fail("it does not recover")


def test_a_client_that_dawdles_is_hung_up_on(shown: Shown, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(web, "_PATIENCE", 0.5)
    host, _, port = shown.web().partition(":")
    with socket.create_connection((host, int(port)), timeout=10) as client, pytest.raises(OSError):
        for _ in range(200):
            client.sendall(b"G")
            time.sleep(0.05)


def test_an_address_that_is_taken_is_told(shown: Shown) -> None:
    where = shown.web()
    with pytest.raises(ConfigError, match=f"--prom-address {where} cannot be listened on: Address already in use"):
        shown.web(where)


def test_the_page_asks_nobody_else_and_allows_only_its_own_script(shown: Shown) -> None:
    _, page, headers = get(shown.web(), "/")
    policy = headers["Content-Security-Policy"]
    assert "default-src 'none'" in policy
    assert "unsafe" not in policy
    assert policy.count("'sha256-") == 2
    assert not re.search(r"(src|href)=\"(?!data:)", page)
    assert not re.search(r"innerHTML|outerHTML|insertAdjacentHTML|document\.write|eval\(", page)
    assert [each for each in re.findall(r"https?://\S+", page) if "www.w3.org" not in each] == []


def test_names_are_never_markup(shown: Shown, tmp_path: Path) -> None:
    chromium = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
    if not chromium:
        pytest.skip("no Chromium: apt-get install chromium")
    flags = ["--headless", "--no-sandbox", "--disable-gpu", "--no-first-run", "--disable-background-networking"]
    flags += [
        "--disable-component-update",
        "--disable-sync",
        f"--user-data-dir={tmp_path}",
        "--virtual-time-budget=3000",
    ]
    seen = subprocess.run(
        [chromium, *flags, "--dump-dom", f"http://{shown.web()}/"],
        capture_output=True,
        text=True,
        timeout=120,
        check=True,
    ).stdout
    assert "<title>1 running · node</title>" in seen
    assert "<img" not in seen
    assert seen.count("<script>") == 1
    assert seen.count(html.escape(HOSTILE, quote=False)) >= 4, "as they are, where they belong"


def test_top_shows_the_same_and_obeys_nobody(shown: Shown, capsys: pytest.CaptureFixture[str]) -> None:
    where = shown.web()
    assert top.main(["--once", "--prom-address", where]) == 0
    told = capsys.readouterr().out
    assert "\x1b" not in told
    assert "cores              [############            ] 1 of 2\n" in told
    assert "GPU 0 (Tesla V100) [######                  ] 4 of 16 slots  is used by others\n" in told
    assert "RUNNING (1)" in told
    assert "document.title='pwned'" in told
    with pytest.raises(Unavailable, match="does not show what it does"):
        top.main(["--once", "--prom-address", shown.web(":0")])
    with pytest.raises(Unavailable, match="does not answer"):
        top.main(["--once", "--prom-address", "127.0.0.1:1"])


def test_top_goes_on_when_the_runner_is_started_anew(shown: Shown, monkeypatch: pytest.MonkeyPatch) -> None:
    answers = [STATUS.document(), Unavailable("n:9090 does not answer"), ConfigError("no runner works here")] * 2

    def ask(_where: str) -> dict[str, Any]:
        answer = answers.pop(0)
        if isinstance(answer, Exception):
            raise answer
        return answer

    monkeypatch.setattr(top, "ask", ask)
    screens = top._screens(top.TopSettings(prom_address="n:9090"))
    told = [next(screens) for _ in range(4)]
    assert told[1:3] == ["n:9090 does not answer; asking again", "no runner works here; asking again"]
    assert "RUNNING (1)" in told[0] and told[3] == told[0]


@pytest.mark.parametrize(("wide", "high"), [(80, 24), (20, 5), (200, 60)])
def test_top_shows_no_more_than_the_terminal_has_room_for(
    shown: Shown, monkeypatch: pytest.MonkeyPatch, wide: int, high: int
) -> None:
    idle = tuple(Queue(f"rmq_{number}", "rmq") for number in range(1000))
    shown.status = replace(STATUS, queues=(*idle, Queue("rmq_last", "rmq", why="it waits")))
    where = shown.web()
    monkeypatch.setattr("sys.stdout.isatty", lambda: True)
    monkeypatch.setenv("COLUMNS", str(wide))
    monkeypatch.setenv("LINES", str(high))
    lines = next(top._screens(top.TopSettings(prom_address=where))).split("\n")
    assert len(lines) < high and (wide < 80 or max(map(len, lines)) <= wide)
    if high == 60:
        queues = lines.index("QUEUES")
        assert lines[queues + 1] == "  rmq_last  0 running  it waits", "what somebody may wonder about comes first"
        assert lines[queues + 11] == "  and 991 more" and "OUTCOMES" in lines


def test_top_says_how_to_find_a_runner(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="no runner works in"):
        top.main(["--once", "--working-dir", str(tmp_path)])


def test_the_document_holds_the_last_lines_of_output_and_no_path(shown: Shown, tmp_path: Path) -> None:
    log = tmp_path / "output"
    log.write_bytes(b"first\n" * 5000 + b"10%\r20%\r\n" + b"bad \xff\nlast")
    shown.status = replace(STATUS, experiments=(replace(STATUS.experiments[0], log=str(log)),))
    (told,) = json.loads(get(shown.web(), "/status.json")[1])["experiments"]
    assert told["lines"][-3:] == ["20%", "bad \N{REPLACEMENT CHARACTER}", "last"]
    assert len(told["lines"]) == 12
    assert str(tmp_path) not in json.dumps(told)


def test_a_log_that_is_something_else_is_not_read(tmp_path: Path) -> None:
    (tmp_path / "secret").write_text("secret")
    (tmp_path / "link").symlink_to(tmp_path / "secret")
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "real").mkdir()
    (tmp_path / "real" / "output").write_text("secret")
    (tmp_path / "elsewhere").symlink_to(tmp_path / "real")
    assert tail(str(tmp_path / "real" / "output")) == ("secret",)
    assert tail(str(tmp_path / "elsewhere" / "output")) == ()
    (tmp_path / "empty").touch()
    for name in ("link", "pipe", "empty", "missing", "."):
        assert tail(str(tmp_path / name)) == ()


def test_bars_are_what_is_given_out_of_machine_and_cards() -> None:
    cards = [
        Card("u0", "GPU 0 (Tesla V100)", 16, 2**34),
        Card("u1", "GPU 1 (Tesla V100)", 16, 2**34, trouble="is lost", broken=True),
    ]
    allocator = Allocator(Resources(cpus=4, ram=100, hdd=1000), Gpus(cards))
    allocator.reserve(Need(cpus=1, ram=30, hdd=200, gpus=Wish(slots=4, group=("q", "p"))))
    assert bars(allocator) == (
        Bar("cores", 1, 4),
        Bar("memory", 30, 100, "bytes"),
        Bar("disk", 200, 1000, "bytes"),
        Bar("GPU 0 (Tesla V100)", 4, 16, "slots"),
        Bar("GPU 1 (Tesla V100)", 0, 16, "slots", "is lost"),
    )


def test_outcomes_are_counted_by_quarters_of_an_hour_without_gaps() -> None:
    now = [900.0 * 100 + 5]
    journal = Journal(Metrics(), now=lambda: now[0])

    def end(outcome: str) -> None:
        journal.ended("q", "k", Finished(outcome, "…", verdict="ok"), "acknowledged", attempt=1, seconds=1.0)

    end("completed")
    end("failed")
    now[0] += 900 * 3
    end("stopped")
    assert [(each.completed, each.failed, each.other) for each in journal.periods()] == [
        (1, 1, 0),
        (0, 0, 0),
        (0, 0, 0),
        (0, 0, 1),
    ]
    now[0] += 900 * 1000
    assert len(journal.periods()) == 48
    assert not any(each.other for each in journal.periods())
    now[0] -= 900 * 500
    assert len(journal.periods()) == 48, "a clock that goes back"


def test_the_newest_hundred_outcomes_are_kept_the_last_first() -> None:
    journal = Journal(Metrics())
    for number in range(150):
        journal.ended("q", f"k{number}", Finished("completed", "…"), "acknowledged", attempt=1, seconds=1.0)
    assert [journal.outcomes[0].key, journal.outcomes[-1].key, len(journal.outcomes)] == ["k149", "k50", 100]
