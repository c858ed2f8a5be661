"""Real servers, each started when the first test asks for it."""

import logging

import pytest
from hypothesis import settings

pytest_plugins = [
    f"tests.servers.{name}" for name in ("apptainer", "ceph", "gcs", "kube_apiserver", "rabbitmq", "sqs", "swift")
]

# What only some machines have; and where tests ask for it.
_SERVERS = {"apptainer", "broker", "s3", "sqs", "moto", "ministack", "gcs_emulator", "swift"}
_PLACES = ("tests/e2e/", "tests/contract/", "tests/test_build_zipapp.py")

# What starts so many processes that other Pythons than the main one are not tried with it.
_ONCE = tuple(
    f"tests/test_{name}.py"
    for name in ("building", "cache", "disk", "layer", "many_files", "prepare", "run", "running", "slack")
)

# What takes longest comes first, so that no process is left with all of it at the end.
_LONG = (
    "tests/e2e/",
    *(f"tests/test_{name}.py" for name in ("store_faults", "rabbitmq", "sqs", "running", "building")),
    "tests/contract/",
)

# A slow machine is no mistake.
settings.register_profile("project", deadline=None, database=None)
settings.load_profile("project")

# It reports every refused connection many times over, and tests refuse many.
logging.getLogger("pika").setLevel(logging.CRITICAL)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Mark what needs servers or a network, and what needs no other Python; put the tests in order."""
    for item in items:
        fixtures = getattr(item, "fixturenames", ())
        if _SERVERS.intersection(fixtures) or item.nodeid.startswith(_PLACES):
            item.add_marker("servers")
        if item.nodeid.startswith(_ONCE):
            item.add_marker("once")
    items.sort(key=lambda item: next((place for place, name in enumerate(_LONG) if item.nodeid.startswith(name)), 99))
