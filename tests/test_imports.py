"""Imports only ever point down: the table says which way down is, as does the drawing of docs/architecture.md."""

from __future__ import annotations

import ast
import re
from graphlib import TopologicalSorter
from pathlib import Path

import pytest

PACKAGE = Path(__file__).resolve().parent.parent / "runner"

# What modules of a package may import, beside its own and those at the top of the house ("" is `runner/` itself).
BELOW = {
    "machine": "",
    "crypto": "",
    "storage": "",
    "options": "machine",
    "secrets": "options crypto",
    "message": "secrets storage crypto",
    "queues": "options message",
    "artifacts": "message storage machine secrets",
    "sandbox": "artifacts message storage machine secrets",
    "monitoring": "machine",
    "reporting": "queues message crypto",
    "supervisor": "monitoring reporting sandbox queues options message machine secrets",
    "attempt": "sandbox artifacts message storage machine secrets",
    "commands": "supervisor attempt monitoring reporting sandbox artifacts queues options message storage machine"
    " secrets crypto",
    "": "commands attempt options secrets storage machine",
}
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
            submodules = [f"{node.module}.{alias.name}" for alias in node.names]
            names = [name if name.removeprefix("runner.") in MODULES else node.module or "" for name in submodules]
        found |= {name.removeprefix("runner").removeprefix(".") for name in names if name.split(".")[0] == "runner"}
    return found


IMPORTS = {module: imported(path) - {module} for module, path in MODULES.items()}


def package_of(module: str) -> str:
    return next((package for package in BELOW if package and f"{module}.".startswith(f"{package}.")), "")


def test_every_package_has_its_place() -> None:
    assert {path.parent.name for path in PACKAGE.glob("*/__init__.py")} == set(BELOW) - {""}


@pytest.mark.parametrize("module", sorted(MODULES))
def test_a_module_imports_only_what_is_below_its_package(module: str) -> None:
    allowed = {"", package_of(module), *BELOW[package_of(module)].split()}
    assert {other for other in IMPORTS[module] if package_of(other) not in allowed} == set()


def test_the_drawing_has_every_module_and_no_other() -> None:
    page = (PACKAGE.parent / "docs" / "architecture.md").read_text()
    drawing = page[page.index("    bootstrap.py") :].split("\n\n")[0]
    drawn = set(re.findall(r"\b\w+\.py\b", drawing))
    there = {path.name for path in MODULES.values()}
    checks = {path.name for path in (PACKAGE / "commands" / "doctor").glob("*.py")}  # of which it names a few
    assert drawn - there == set()
    assert there - drawn - checks - {"__init__.py", "__main__.py"} == set()


def test_no_modules_import_each_other_in_a_circle() -> None:
    TopologicalSorter(IMPORTS).prepare()


def test_nothing_but_its_own_module_knows_a_foreign_library() -> None:
    """pika ends in the queues' modules; requests and urllib3 in the stores' clients and the search for queues."""
    allowed = {
        "pika": {
            "queues.rabbitmq",
            "queues.amqp",
            "queues.management",
            "queues.discovery",
            "queues.confirmed",
            "queues.link",
        },
        "cryptography": {"crypto.key_files", "crypto.sealing", "crypto.signing", "storage.gcs_tokens"},
        "nacl": {"crypto.sealing"},
        "pynvml": {"machine.nvml"},
        "prometheus_client": {"monitoring.exposition"},
        "botocore": {"queues.sqs_account"},
        "requests": {
            "queues.management",
            "sandbox.registry",
            "supervisor.kubernetes",
            "supervisor.api_server",
            "commands.doctor.pythons",
            "commands.doctor.machine",
            "reporting.slack",
            "storage.gcs",
            "storage.gcs_wire",
            "storage.s3",
            "storage.s3_wire",
            "storage.http",
            "storage.transport",
            "storage.connections",
        },
        "urllib3": {"storage.transport", "storage.connections", "reporting.slack"},
    }
    for module, path in MODULES.items():
        for node in ast.walk(ast.parse(path.read_text())):
            names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
            names += [node.module or ""] if isinstance(node, ast.ImportFrom) else []
            for name in names:
                assert module in allowed.get(name.split(".")[0], {module}), f"{module} imports {name}"
