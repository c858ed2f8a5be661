"""Imports only ever point down: the table is the drawing of docs/architecture.md."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

PACKAGE = Path(__file__).resolve().parent.parent / "runner"

# From top to bottom. A module may import what stands below it, never what stands above it or beside it, except that
# modules of one package ("storage.*") may import each other. Bases, which are the seams, stand at the bottom.
LAYERS: list[list[str]] = [
    ["__main__", "bootstrap"],
    ["cli"],
    ["run"],
    ["serve", "submit", "listen", "explain", "top", "prepare", "validate", "keygen", "doctor", "attempt_process"],
    [
        "doctor.queues",
        "doctor.stores",
        "doctor.pythons",
        "doctor.machine",
        "doctor.keys",
        "doctor.kubernetes",
        "doctor.notices",
        "doctor.gpus",
    ],
    ["doctor.base", "message_file", "only_message"],
    ["supervisor", "attempt", "web"],
    ["overview", "board", "exposition", "stopping", "spare", "orders"],
    ["running", "disk_use", "usage", "verdict"],
    [
        "admission",
        "servers",
        "slack",
        "child",
        "intake",
        "replays",
        "reports",
        "lease",
        "metadata_files",
        "follow",
        "shelf",
    ],
    ["checkpoints", "record"],
    ["journal"],
    ["status"],
    [
        "settle",
        "sandbox.venv",
        "sandbox.singularity",
        "sandbox.images",
        "sandbox.pulling",
        "sandbox.registry",
        "sandbox.interpreters",
        "program",
        "artifacts",
        "worker",
        "reasons",
    ],
    ["cache"],
    ["cache_entries", "trees", "manifest", "remarks"],
    [
        "unpacking",
        "packing",
        "sandbox.building",
        "sandbox.complaints",
        "sandbox.containers",
        "sandbox.environment",
        "sandbox.environments",
        "sandbox.indexes",
        "sandbox.layer",
        "sandbox.recipe",
        "sandbox.requirements",
        "console",
        "progress",
        "metadata",
        "watch",
        "queues.files",
        "queues.rabbitmq",
        "queues.sqs",
    ],
    ["concealment"],
    ["sandbox.base", "lifecycle", "teller", "kubernetes", "outbox", "envelope"],
    [
        "metrics",
        "place",
        "events",
        "request",
        "queues",
        "machine.inventory",
        "machine.gpu_watch",
        "storage.stores",
        "private_keys",
    ],
    [
        "machine.allocate",
        "machine.disk",
        "machine.hoard",
        "queues.base",
        "queues.discovery",
        "queues.confirmed",
        "queues.sqs_held",
        "queues.sqs_search",
        "queues.sqs_sending",
        "queues.management",
        "storage.s3",
        "storage.http",
        "storage.gcs",
        "storage.files",
        "storage",
        "sandbox.process",
        "sandbox.procfs",
        "keys",
        "sealing",
        "signing",
        "report",
    ],
    ["queues.amqp", "queues.sqs_account", "sandbox.references"],
    ["request_artifacts", "request_packages"],
    ["archive", "walking", "sparse"],
    [
        "fields",
        "key_files",
        "redaction",
        "json_patch",
        "storage.s3_wire",
        "storage.s3_upload",
        "storage.s3_check",
        "storage.gcs_wire",
        "storage.gcs_upload",
        "storage.ranges",
        "settings",
    ],
    [
        "strict_json",
        "sandbox.users",
        "storage.sigv4",
        "storage.gcs_tokens",
        "machine.cgroups",
        "machine.cards",
        "machine.fitting",
        "machine.gpu_faults",
        "machine.gpus",
        "machine.nvml",
        "machine.visible",
        "storage.gcs_check",
        "storage.transport",
        "storage.connections",
        "storage.base",
        "storage.metered",
        "loop",
        "log",
        "locks",
    ],
    ["retry", "units", "native", "machine", "sandbox", "masking"],
    ["forms"],
    ["errors"],
    [""],
]
LEVEL = {module: level for level, modules in enumerate(LAYERS) for module in modules}
MODULES = {
    ".".join(path.relative_to(PACKAGE).with_suffix("").parts).removesuffix("__init__").removesuffix("."): path
    for path in PACKAGE.rglob("*.py")
}


def imported(path: Path) -> set[str]:
    """Return the project's modules that a module imports, anywhere in it, without the leading ``runner.``."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text())):
        names = []
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            names = [f"{node.module}.{alias.name}" for alias in node.names] + [node.module or ""]
        for name in names:
            module = name.removeprefix("runner").removeprefix(".") if name.split(".")[0] == "runner" else None
            if module in MODULES:
                found.add(module)
    return found


def test_the_table_names_every_module_and_no_other() -> None:
    assert set(LEVEL) == set(MODULES)


@pytest.mark.parametrize("module", sorted(MODULES))
def test_a_module_imports_only_what_is_below_it(module: str) -> None:
    package = module.partition(".")[0]
    wrong = {
        other
        for other in imported(MODULES[module]) - {module}
        if LEVEL[other] <= LEVEL[module] and package != other.partition(".")[0]
    }
    assert not wrong


def test_nothing_but_its_own_module_knows_a_foreign_library() -> None:
    """pika ends in the queues' modules; requests and urllib3 in the stores' clients and the search for queues."""
    allowed = {
        "pika": {"queues.rabbitmq", "queues.amqp", "queues.management", "queues.discovery", "queues.confirmed"},
        "cryptography": {"key_files", "sealing", "signing", "storage.gcs_tokens"},
        "nacl": {"sealing"},
        "pynvml": {"machine.nvml"},
        "prometheus_client": {"exposition"},
        "botocore": {"queues.sqs_account"},
        "requests": {
            "queues.management",
            "sandbox.registry",
            "kubernetes",
            "doctor.pythons",
            "doctor.machine",
            "slack",
            "storage.gcs",
            "storage.gcs_wire",
            "storage.s3",
            "storage.s3_wire",
            "storage.http",
            "storage.transport",
            "storage.connections",
        },
        "urllib3": {"storage.transport", "storage.connections"},
    }
    for module, path in MODULES.items():
        for node in ast.walk(ast.parse(path.read_text())):
            names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
            names += [node.module or ""] if isinstance(node, ast.ImportFrom) else []
            for name in names:
                assert module in allowed.get(name.split(".")[0], {module}), f"{module} imports {name}"
