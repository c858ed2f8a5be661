"""Read-only artifacts at URLs, as the clients' messages name them, fetched by a real runner."""

from __future__ import annotations

import base64
from typing import Any

from tests.e2e.harness import Workplace, archive
from tests.servers.http import Served, serving

SCRIPT = """
import pathlib
for label in ("data", "exturl"):
    for path in sorted(pathlib.Path("..", label).iterdir()):
        print(label, path.name, path.read_text())
"""
BASIC = "Basic " + base64.b64encode(b"me:hunter2").decode()


def at(url: str, *, unpack: bool, **members: Any) -> dict[str, Any]:
    """Name an artifact as tests/vectors/clear_url.json does."""
    return {"unpack": unpack, "mutable": False, "url": url, **members}


def test_artifacts_at_urls_are_fetched(place: Workplace) -> None:
    with serving() as server:
        server.objects["/a%20b.txt?sig=s3cret"] = Served(b"from a URL")
        server.objects["/data.tar"] = Served(status=302, headers={"Location": "/elsewhere"})
        server.objects["/elsewhere"] = Served(archive({"one": b"1", "two": b"2"}), authorization=BASIC)
        message = place.message(SCRIPT)
        credentials = {"plain": {"user": "me", "password": "hunter2"}}
        message["experiment"]["artifacts"]["exturl"] = at(f"http://{server.host}/a%20b.txt?sig=s3cret", unpack=False)
        message["experiment"]["artifacts"]["data"] = at(
            f"http://{server.host}/data.tar", unpack=True, credentials=credentials
        )
        place.publish(message)
        runner = place.start()
        place.settled()
        assert "completed" in runner.saw("acknowledged")
    assert "data one 1\ndata two 2\nexturl a b.txt from a URL\n" in place.output()
    everything = runner.log + place.output() + str(place.metadata())
    assert not [secret for secret in ("hunter2", "s3cret", BASIC) if secret in everything]
    assert runner.stop() == 0


def test_an_artifact_that_is_not_there_fails_the_experiment_and_shows_no_signature(place: Workplace) -> None:
    with serving() as server:
        message = place.message(SCRIPT)
        message["experiment"]["artifacts"]["exturl"] = at(f"http://{server.host}/x.txt?sig=s3cret", unpack=False)
        place.publish(message)
        runner = place.start("--max-attempts", "1")
        place.settled()
        host = server.host
    assert f"artifact 'exturl' is missing: http://{host}/x.txt?… does not exist" in runner.saw("is missing")
    assert f"artifact 'exturl' is missing: http://{host}/x.txt?… does not exist" in place.output()
    assert "s3cret" not in runner.log + place.output() + str(place.metadata())
    assert runner.stop() == 0


def test_the_credentials_of_a_cloud_machine_are_not_fetched(place: Workplace) -> None:
    with serving() as server:
        server.objects["/x.txt"] = Served(status=307, headers={"Location": "http://169.254.169.254/latest/meta-data/"})
        message = place.message(SCRIPT)
        message["experiment"]["artifacts"]["exturl"] = at(f"http://{server.host}/x.txt", unpack=False)
        place.publish(message)
        runner = place.start("--max-attempts", "1")
        place.settled()
    assert "169.254.169.254 is an address at which machines find their own credentials" in place.output()
    assert runner.stop() == 0
