"""The documents say what the program says: sentences, options and links exist, and command lines can be understood."""

from __future__ import annotations

import ast
import dataclasses
import json
import re
import shlex
import subprocess
from collections.abc import Iterator
from datetime import datetime, timezone
from itertools import pairwise
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import pytest

from runner.attempt.metadata import Document
from runner.cli import main
from runner.message import request
from runner.options.reading import flag_of, gather
from tests.documents import EXAMPLES, OURS, PAGES, ROOT, commands, lines_of_code, named
from tools import write_options

QUOTED = re.findall(r"`([^`]*)`", (ROOT / "docs" / "troubleshooting.md").read_text())
TROUBLES = [each for each in QUOTED if len(each) > 20 and " " in each and not each.startswith("studio-runner")]
FLAGS = {
    name: {flag_of(each): each for each in dataclasses.fields(kind)} for name, kind in write_options.COMMANDS.items()
}

# How many words each command takes after its options.
WORDS = {
    "": (0, 0),
    "submit": (2, 99),
    "listen": (1, 1),
    "explain": (1, 1),
    "top": (0, 0),
    "run": (1, 99),
    "validate": (1, 1),
    "doctor": (0, 1),
    "prepare": (1, 1),
    "keys": (1, 99),
}


# Sentences


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


# Options


def test_the_page_of_options_is_up_to_date() -> None:
    assert write_options.PAGE.read_text() == write_options.page(), "make docs"


@pytest.mark.parametrize("command", write_options.COMMANDS)
def test_the_page_of_options_has_those_that_the_program_takes(command: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([*filter(None, [command]), "--help"]) == 0
    assert set(re.findall(r"^  (--[a-z0-9-]+)", capsys.readouterr().out, re.MULTILINE)) == set(FLAGS[command])


def test_the_page_of_options_knows_every_command(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["nonsense"]) == 2
    known = capsys.readouterr().err.partition("they are ")[2].partition(";")[0]
    assert {"", *known.split(", ")} == set(write_options.COMMANDS)


@pytest.mark.parametrize("page", OURS, ids=named)
def test_every_option_that_a_document_names_exists(page: Path) -> None:
    known = {flag for flags in FLAGS.values() for flag in flags} | {"--help", "--version"} | FOREIGN
    assert set(re.findall(r"(?<![\w-])--[a-z][a-z0-9-]+", page.read_text())) <= known


# Of docker and kubectl, and of experiments.
FOREIGN = {"--build", "--rm", "--from-literal", "--epochs"}


def test_the_readme_s_table_has_the_ten_options_that_matter_most() -> None:
    table = re.search(r"\| option \| meaning \|\n\| --- \| --- \|\n((?:\|.*\n)*)", (ROOT / "README.md").read_text())
    assert table
    assert table[1].count("\n") == 10
    assert set(re.findall(r"--[a-z-]+", table[1])) <= set(FLAGS[""])


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


# Links


def without_code(text: str) -> str:
    text = re.sub(r"^ *```.*?^ *```", "", text, flags=re.MULTILINE | re.DOTALL)
    return re.sub(r"`[^`\n]*`", "", text)


def anchors(page: Path) -> set[str]:
    """Return the names of a page's headings, as GitHub makes them."""
    found = re.findall(r"^#+ (.*)$", re.sub(r"^```.*?^```", "", page.read_text(), flags=re.M | re.S), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in found}


@pytest.mark.parametrize("page", PAGES, ids=named)
def test_every_link_leads_somewhere(page: Path) -> None:
    lost = []
    for link in re.findall(r"\]\(([^)\s]+)\)", without_code(page.read_text())):
        path, _, anchor = link.partition("#")
        if re.match(r"[a-z]+:", link):
            continue
        target = (page.parent / path).resolve() if path else page
        if not target.exists() or (anchor and anchor not in anchors(target)):
            lost.append(link)
    assert not lost


def test_the_drawing_can_be_read() -> None:
    assert ElementTree.parse(ROOT / "docs" / "architecture.svg").getroot().tag.endswith("svg")


# Commands


COMMANDS = [(page, words) for page in PAGES for _, words in commands(page)]


@pytest.mark.parametrize(
    ("page", "line"), COMMANDS, ids=lambda value: named(value) if isinstance(value, Path) else value
)
def test_every_command_line_can_be_understood(
    page: Path, line: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", str(tmp_path))
    words = shlex.split(line, comments=True)
    command = words.pop(0) if words[0] in FLAGS else ""
    for flag, value in pairwise(words):
        if flag in FLAGS[command]:
            make(FLAGS[command][flag], value)
    _, rest, faults = gather(write_options.COMMANDS[command], words, {}, usage="")
    assert not faults
    fewest, most = WORDS[command]
    assert fewest <= len(rest) <= most
    assert command in ("run", "submit") or not [word for word in rest if word.startswith("-")]


def make(option: dataclasses.Field[Any], value: str) -> None:
    """Make what an option's value names, in what is home and working directory of the test."""
    path = Path(value).expanduser()
    if option.metadata["metavar"] == "DIR" and option.name != "cache_dir":
        path.mkdir(parents=True, exist_ok=True)
    elif option.metadata["metavar"] == "FILE":
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()


def test_there_are_commands_to_look_at() -> None:
    assert {words[0] for _, line in COMMANDS if (words := line.split())} >= set(FLAGS) - {""}


# What else is to be typed, and what tries it; "-" for what nothing does here. Ours: tests/e2e/test_commands.py.
OTHERS = {
    r"make [a-z]+( |$)": "test_every_target_of_make_exists",
    r"mkdir -p |cd ": "tests/e2e/test_commands.py, tools/check_examples.sh",
    r"docker compose ": "tools/check_examples.sh: the file, with Docker Compose itself",
    r"docker build ": "tools/check_image.sh, tools/check_examples.sh (hadolint)",
    r"docker (run|push) ": "-",
    r"kubectl apply -k ": "tools/check_examples.sh: kustomize, schemas",
    r"kubectl (create secret|patch) ": "tests/test_examples.py",
    r"account=.*aws sts |read .*aws iam |export AWS_|examples/aws/": "tools/check_aws.sh",
    r"aws ecr |eksctl |helm |sed -i.bak ": "-",
    r"apt-get |useradd |install -m |echo |systemctl ": "- (tools/check_examples.sh: the unit)",
}


@pytest.mark.parametrize("page", [ROOT / "README.md", *EXAMPLES], ids=named)
def test_bash_can_read_what_is_to_be_typed_and_it_is_known_what_tries_it(page: Path) -> None:
    lines = list(lines_of_code(page))
    subprocess.run(["bash", "-n"], input="\n".join(lines).encode(), check=True)
    ours = {line for line, _ in commands(page)}
    assert not [line for line in lines if line not in ours and not any(re.match(each, line) for each in OTHERS)]


@pytest.mark.parametrize("page", PAGES, ids=named)
def test_every_command_that_is_named_in_a_sentence_exists(page: Path) -> None:
    for line in re.findall(r"`(?:\./)?studio-runner(?:\.pyz)? ([^`]*)`", page.read_text()):
        command = "" if line.startswith("-") else line.split()[0]
        assert command in FLAGS, line
        assert set(re.findall(r"(?<![\w-])--[a-z][a-z0-9-]+", line)) <= {*FLAGS[command], "--help", "--version"}, line


@pytest.mark.parametrize("page", PAGES, ids=named)
def test_every_target_of_make_exists(page: Path) -> None:
    rules = set(re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE))
    asked = re.findall(r"(?:`|&& |^ {4,}|-w /src \S+ )make ([a-z-]+)", page.read_text(), re.MULTILINE)
    assert set(asked) <= rules


# Examples of messages and of what they come to


def test_the_message_that_is_shown_is_one() -> None:
    shown = re.search(r"^```json\n(.*?)^```", (ROOT / "docs" / "protocol.md").read_text(), re.MULTILINE | re.DOTALL)
    assert shown
    wanted = request.parse(shown[1].replace("…", "hidden").encode())
    assert set(wanted.artifacts) == {"workspace", "output", "_metadata"}


def test_metadata_that_is_shown_comes_of_the_lines_that_are_shown() -> None:
    page = ROOT / "docs" / "metadata.md"
    document = Document(schema_logs=False)
    for line in lines_of_code(page):
        if printed := re.fullmatch(r"print\(json\.dumps\((.*)\)\)", line):
            assert document.feed(printed[1], datetime.now(timezone.utc))
    (left,) = re.findall(r"^leave `([^`]*)`", page.read_text(), re.MULTILINE)
    found = json.loads(document.to_json())
    del found["studioml"]
    assert found == json.loads(left)
