"""The documents say what the program says: sentences that they quote are in its sources, and options exist."""

from __future__ import annotations

import ast
import dataclasses
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

from runner.settings import Settings, flag_of

ROOT = Path(__file__).parent.parent
QUOTED = re.findall(r"`([^`]*)`", (ROOT / "docs" / "troubleshooting.md").read_text())
TROUBLES = [each for each in QUOTED if len(each) > 20 and " " in each and not each.startswith("studio-runner")]


def sentences(tree: ast.Module) -> Iterator[str]:
    """Yield every text of a module, with an ellipsis in place of what is filled in."""
    for node in ast.walk(tree):
        if isinstance(node, ast.JoinedStr):
            yield "".join(each.value if isinstance(each, ast.Constant) else "…" for each in node.values)  # type: ignore[misc]
        elif isinstance(node, ast.Constant) and isinstance(node.value, str):
            yield re.sub(r"%[\d.]*[sdfr]", "…", node.value)


@pytest.fixture(scope="module")
def said() -> str:
    files = (ROOT / "runner").rglob("*.py")
    return "\0".join(each for file in files for each in sentences(ast.parse(file.read_text())))


@pytest.mark.parametrize("quoted", TROUBLES)
def test_troubleshooting_quotes_what_the_runner_says(quoted: str, said: str) -> None:
    assert quoted in said


def test_every_option_that_a_document_names_exists() -> None:
    known = {flag_of(field) for field in dataclasses.fields(Settings)}
    for name in ("troubleshooting.md", "migration.md"):
        text = (ROOT / "docs" / name).read_text()
        assert set(re.findall(r"(?<![\w-])--[a-z][a-z0-9-]+", text)) <= known | {"--help", "--wait"}, name


def test_migration_tells_of_every_option_of_the_earlier_runner() -> None:
    text = (ROOT / "docs" / "migration.md").read_text()
    assert not [name for name in EARLIER.split() if f"`{name}`" not in text]


# Protocol section 9.
EARLIER = """
amqp-url amqp-mgt-url queue-match queue-mismatch sqs-certs sqs-timeout queue-root working-dir debug cpu-only max-cores
max-mem max-disk encrypt-dir clear-text-messages request-signatures-dir response-signatures-dir prom-address schema-logs
allow-env-secrets limit-tasks limit-idle-duration limit-interval cache-create cache-dir cache-size s3-ca s3-cert s3-key
k8s-namespace k8s-configmap cpu-profile certs-dir slack-hook slack-room
"""
