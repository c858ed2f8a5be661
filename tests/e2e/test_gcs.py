"""Artifacts in Google Cloud Storage: the whole way, whoever the runner is there."""

from __future__ import annotations

import io
import json
import tarfile
from typing import Any

import pytest

from tests.e2e.harness import Workplace, archive
from tests.servers.faulty import faulty
from tests.servers.gcs import Gcs

SCRIPT = """
import os, pathlib
print("hello", os.environ.get("GOOGLE_APPLICATION_CREDENTIALS", "nobody"))
pathlib.Path("../modeldir/model").write_bytes(os.urandom(20_000_000))
"""


def message(place: Workplace, gcs: Gcs, bucket: str, token: str = "") -> dict[str, Any]:
    """Store a workspace of one script, and return the message of an experiment that runs it."""
    made = place.message(SCRIPT)
    gcs.put(bucket, "blobstore/demo.tar", archive({"main.py": SCRIPT.encode()}))
    for artifact in made["experiment"]["artifacts"].values():
        artifact["qualified"] = f"gs://{bucket}/{artifact['key']}"
        if token:
            artifact["credentials"] = {"jwt": {"token": token}}
    return made


def stored(gcs: Gcs, bucket: str, label: str, name: str) -> bytes:
    with tarfile.open(fileobj=io.BytesIO(gcs.get(bucket, f"experiments/demo/{label}.tar"))) as archived:
        member = archived.extractfile(name)
        assert member is not None
        return member.read()


def ran(gcs: Gcs, bucket: str) -> None:
    assert b"hello nobody\n" in stored(gcs, bucket, "output", "output")
    assert len(stored(gcs, bucket, "modeldir", "model")) == 20_000_000
    documents = [name for name in gcs.state.objects[bucket] if name.startswith("metadata/scrape-host-")]
    assert [json.loads(gcs.get(bucket, name))["studioml"]["status"] for name in documents] == ["completed"]
    assert gcs.uploads(bucket) == 0


@pytest.mark.parametrize("who", ["message", "service account", "machine"])
def test_a_message_travels_to_google_and_back(place: Workplace, gcs: Gcs, who: str) -> None:
    bucket = gcs.bucket()
    token = gcs.identities.issue() if who == "message" else ""
    place.publish(message(place, gcs, bucket, token))
    key_file = gcs.identities.key_file(place.root / "key.json", gcs.endpoint)
    env = {
        "STORAGE_EMULATOR_HOST": gcs.host,
        "GCE_METADATA_HOST": gcs.host,
        **({"GOOGLE_APPLICATION_CREDENTIALS": key_file} if who != "machine" else {}),
    }
    known = len(gcs.identities.tokens)
    runner = place.start(env=env)
    place.settled()
    assert runner.stop() == 0
    ran(gcs, bucket)
    assert (gcs.identities.metadata_asked > 0) == (who == "machine")
    assert (len(gcs.identities.tokens) == known) == (who == "message")
    assert not [token for token in gcs.identities.tokens if token in runner.log]


def test_a_store_that_fails_for_a_while_costs_nothing_but_time(place: Workplace, gcs: Gcs) -> None:
    bucket = gcs.bucket()
    place.publish(message(place, gcs, bucket, gcs.identities.issue()))
    with faulty(gcs.host) as proxy:
        proxy.answer(503, times=3)
        proxy.cut(100, of="alt=media")
        proxy.swallow(of="upload_id")
        proxy.answer(503, of="upload_id", times=3)
        place.start("--google-endpoint", f"http://{proxy.host}")
        place.settled()
    ran(gcs, bucket)


def test_what_the_runner_may_not_read_fails_with_one_sentence(place: Workplace, gcs: Gcs) -> None:
    bucket = gcs.bucket()
    place.publish(message(place, gcs, bucket))
    runner = place.start("--google-endpoint", gcs.endpoint, "--google-metadata=false", "--max-attempts", "1")
    told = runner.saw("not tried again")
    assert f"{gcs.endpoint} does not allow anonymous access to read gs://{bucket}/" in told
    assert "Traceback" not in runner.log
