"""Requests: what real messages mean, and what is told of bad ones."""

from __future__ import annotations

import copy
import json
import math
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from runner.errors import RequestError
from runner.message import request
from runner.message.request import Request, Resources
from runner.storage.base import AwsCredentials, BasicCredentials, BearerToken, Location

VECTORS = Path(__file__).parent / "vectors"
CLEAR = sorted(path for path in VECTORS.glob("clear_*.json") if "props" not in path.name)
SEALED = sorted(path for path in VECTORS.glob("enc_*.json") if "props" not in path.name)
KEYS = AwsCredentials("testing", "testing-secret")


def vector(name: str) -> Any:
    return json.loads((VECTORS / f"clear_{name}.json").read_text())


def parsed(document: object, **options: bool) -> Request:
    return request.parse(json.dumps(document).encode(), **options)


def changed(path: str, value: Any, document: Any = None) -> Any:
    """Return the message with one member changed, or removed where the value is ``...``."""
    document = copy.deepcopy(document) if document else vector("hello")
    *way, last = path.split(".")
    place = document
    for step in way:
        place = place.setdefault(step, {})
    if value is ...:
        del place[last]
    else:
        place[last] = value
    return document


def faults(document: object, **options: bool) -> tuple[str, ...]:
    with pytest.raises(RequestError) as caught:
        parsed(document, **options)
    return caught.value.faults


def fault(path: str, value: Any, **options: bool) -> str:
    (told,) = faults(changed(path, value), **options)
    return told


# Real messages


@pytest.mark.parametrize("path", CLEAR, ids=lambda path: path.stem)
def test_every_real_message_parses(path: Path) -> None:
    body = path.read_bytes()
    wanted, document = request.parse(body), json.loads(body)
    assert wanted.document == document
    assert wanted.key == document["experiment"]["key"]
    assert set(wanted.artifacts) == set(document["experiment"]["artifacts"])
    assert request.from_document(wanted.document) == wanted
    assert "testing-secret" not in repr(wanted) + json.dumps(request.redacted(document))


def test_a_whole_message() -> None:
    wanted = parsed(vector("hello"))
    assert (wanted.filename, wanted.args) == ("hello.py", ("10", "two words", '$HOME;"q"'))
    assert (wanted.pythonver, wanted.pythonenv, wanted.pip) == ("3.11", (), ())
    assert (wanted.project, wanted.author) == ("cl_kit", None)
    assert wanted.resources == Resources(cpus=1, ram=512_000_000, hdd=1_000_000_000)
    assert (wanted.max_duration, wanted.lifetime, wanted.save_frequency) == (1200.0, 7200.0, 60.0)
    assert wanted.time_added == 1795444899.377445
    assert (wanted.env, wanted.verbose) == ({"KIT_ENV": "from-config"}, "error")
    workspace, output = wanted.artifacts["workspace"], wanted.artifacts["output"]
    blob = "blobstore/48a2cc3eeb83e6933cbc4bdc7b7d4dcd293e1a7b6d67647fd93f5ea1863181c4.tar"
    assert workspace.location == Location("s3", "127.0.0.1:5000", "cl-data", blob, region="us-west-1")
    assert (workspace.mutable, workspace.unpack, workspace.hash) == (False, True, "")
    assert (output.mutable, output.credentials) == (True, KEYS)
    assert workspace.qualified == f"s3://127.0.0.1:5000/cl-data/{blob}"
    key = "experiments/kit_hello_14413733bae3"
    assert wanted.record == request.Record(
        Location("s3", "127.0.0.1:5000", "cl-data-meta", key, region="us-west-1"), KEYS
    )


def test_artifacts_without_credentials_have_those_of_the_storage() -> None:
    assert {each.credentials for each in parsed(vector("completion_service")).artifacts.values()} == {KEYS}
    workspace = parsed(vector("hyperparam")).artifacts["workspace"]
    assert (workspace.credentials, workspace.mutable, workspace.unpack) == (KEYS, True, True)


def test_other_real_artifacts() -> None:
    assert parsed(vector("local_reuse")).resources == Resources(2, 1, 2, 4_000_000_000, 2_000_000_000, 3_000_000_000)
    assert parsed(vector("local_reuse")).artifacts["oldmodel"].unpack
    url = parsed(vector("url")).artifacts["exturl"]
    assert url.location == Location("http", "127.0.0.1:5000", "", "cl-data/x.txt")
    assert (url.mutable, url.unpack, url.credentials) == (False, False, None)
    assert parsed(vector("pkg_six")).pythonenv == ("six==1.16.0",)


@pytest.mark.parametrize(
    ("given", "pace"), [("90s", 90.0), (5, 5.0), ("0", 0.0), (0, None), ("", None), (None, None), (..., None)]
)
def test_an_artifact_may_have_a_pace_of_its_own(given: Any, pace: float | None) -> None:
    wanted = parsed(changed("experiment.artifacts.output.saveFrequency", given if given is not ... else None))
    assert wanted.artifacts["output"].save_frequency == pace


@pytest.mark.parametrize("path", SEALED, ids=lambda path: path.stem)
def test_an_envelope_is_for_somebody_who_has_the_key(path: Path) -> None:
    document = json.loads(path.read_bytes())
    assert request.is_envelope(document) != ("expect" in path.name)
    if request.is_envelope(document):
        with pytest.raises(RequestError, match="has to be opened first"):
            request.parse(path.read_bytes())


# Bad bytes


@pytest.mark.parametrize(
    ("body", "told"),
    [
        (b"", "line 1, column 1"),
        (b"{ this is no JSON", "line 1, column 3"),
        (b"\xff\xfe{}", "UTF-8 at byte 0"),
        (b"[" * 1_000_000, "levels"),
        (b'{"experiment": {"key": "a", "key": "b"}}', "'key' twice"),
        (b'{"experiment": {"time_added": NaN}}', "NaN"),
        (b'{"experiment": {"time_added": 1e999}}', "too large"),
        (b'{"experiment": {"time_added": ' + b"1" * 5000 + b"}}", "5000 digits"),
        (b" " * (16 * 1024 * 1024 + 1), "16777217 bytes"),
        (b'{"experiment": [' + b"[]," * 1_000_000 + b"[]]}", "1000000 values"),
        (
            json.dumps(
                {"experiment": {}, "config": {"env": {f"TOKEN{n}": f"secret{n}" for n in range(2001)}}}
            ).encode(),
            "2001",
        ),
        (b"7", "experiment"),
        (b"[]", "experiment"),
        (b"null", "experiment"),
        (b'{"message": {"pay": 1}}', "experiment"),
        (b'{"experiment": []}', "experiment"),
    ],
)
def test_bytes_that_are_no_request_are_told_in_one_sentence(body: bytes, told: str) -> None:
    with pytest.raises(RequestError, match=told) as caught:
        request.parse(body)
    assert len(caught.value.faults) == 1
    assert len(str(caught.value)) < 200


def test_a_byte_order_mark_does_no_harm() -> None:
    assert request.parse(b"\xef\xbb\xbf" + json.dumps(vector("hello")).encode()).filename == "hello.py"


# Members


def test_everything_but_the_key_the_file_and_the_code_may_be_missing() -> None:
    artifacts = {"workspace": {"qualified": "file:///data/ws.tar"}}
    wanted = parsed({"experiment": {"key": "k", "filename": "a.py", "artifacts": artifacts}})
    assert (wanted.args, wanted.pythonver, wanted.pythonenv, wanted.resources) == ((), "3", (), Resources())
    assert (wanted.max_duration, wanted.lifetime, wanted.time_added, wanted.save_frequency) == (None,) * 4
    assert (wanted.env, wanted.record, wanted.verbose, wanted.project) == ({}, None, None, None)
    assert faults({"experiment": {}}) == (
        "experiment.key: is missing",
        "experiment.filename: is missing",
        "experiment.artifacts: must have a workspace: there is no code to run",
    )


def test_null_and_the_empty_texts_of_go_writers_are_the_same_as_nothing() -> None:
    document = vector("hello")
    document["experiment"] |= {"max_duration": "", "project": None, "pythonver": "", "time_added": 0, "args": None}
    document["experiment"]["resources_needed"] = {"cpus": None, "ram": "", "gpuMem": None}
    document["experiment"]["artifacts"]["tb"] = None
    document["config"] |= {"experimentLifetime": None, "env": None, "pip": None, "saveWorkspaceFrequency": "0"}
    wanted = parsed(document)
    assert (wanted.max_duration, wanted.project, wanted.pythonver, wanted.time_added, wanted.args) == (
        *(None, None, "3", None),
        (),
    )
    assert (wanted.lifetime, wanted.env, wanted.pip, wanted.save_frequency) == (None, {}, (), None)
    assert wanted.resources == Resources()
    assert "tb" not in wanted.artifacts


@pytest.mark.parametrize(
    ("path", "value"),
    [
        ("experiment.key", ""),
        ("experiment.key", 7),
        ("experiment.key", "x" * 1025),
        ("experiment.key", "\ud800"),
        ("experiment.args", "a b"),
        ("experiment.args", ["'open"]),
        ("experiment.args", ["x" * 200_000]),
        ("experiment.pythonver", "3.x"),
        ("experiment.pythonver", "3.11.4.5"),
        ("experiment.pythonver", "3.11\n"),
        ("experiment.pythonver", "٣"),
        ("experiment.pythonver", "9" * 5000),
        ("experiment.pythonver", -3),
        ("experiment.pythonver", True),
        ("experiment.pythonenv", "six"),
        ("experiment.max_duration", "soon"),
        ("experiment.max_duration", -1),
        ("experiment.max_duration", ["1h"]),
        ("config.experimentLifetime", 10**30),
        ("config.saveWorkspaceFrequency", "-1m"),
        ("experiment.time_added", "yesterday"),
        ("experiment.time_added", -1),
        ("experiment.time_added", 10**300),
        ("experiment.resources_needed", []),
        ("experiment.resources_needed.cpus", 0.5),
        ("experiment.resources_needed.cpus", -1),
        ("experiment.resources_needed.cpus", True),
        ("experiment.resources_needed.gpus", "many"),
        ("experiment.resources_needed.gpuCount", 10**30),
        ("experiment.resources_needed.ram", "much"),
        ("experiment.resources_needed.hdd", "-1gb"),
        ("experiment.resources_needed.gpuMem", {}),
        ("config", []),
        ("config.env", ["A=b"]),
        ("config.storage", "s3"),
        ("config.database", 7),
        ("experiment.project", {}),
        ("experiment.author", "x" * 1025),
        ("experiment.pythonenv", ["six"] * 10_001),
        ("config.env", {"A": "x" * 200_000}),
        ("config.env", {f"A{number}": "x" * 20_000 for number in range(60)}),
        ("experiment.artifacts.output", "s3://host/b/k"),
        ("experiment.artifacts.output.qualified", 7),
        ("experiment.artifacts.output.qualified", ""),
        ("experiment.artifacts.output.qualified", ...),
        ("experiment.artifacts.output.qualified", "ftp://host/b/k"),
        ("experiment.artifacts.output.mutable", "true"),
        ("experiment.artifacts.output.unpack", 1),
        ("experiment.artifacts.output.hash", "abc"),
        ("experiment.artifacts.output.saveFrequency", "often"),
        ("experiment.artifacts.output.bucket", 7),
        ("experiment.artifacts.output.credentials", "hunter2"),
        ("experiment.artifacts.output.credentials", {"aws": {}, "jwt": {}}),
        ("config.database.endpoint", "http://no host/"),
    ],
)
def test_a_bad_member_is_told_by_its_path(path: str, value: Any) -> None:
    told = fault(path, value)
    assert told.startswith(f"{path}: ")
    assert len(told) < 300
    assert "hunter2" not in told


def test_all_faults_are_told_at_once_but_not_more_than_can_be_read() -> None:
    document = changed("experiment.filename", "/x.py", changed("experiment.max_duration", "soon"))
    assert len(faults(changed("config.env", {"A": [], "B": {}}, document))) == 4
    many = faults(changed("config.env", {f"A{number}": [] for number in range(100)}))
    assert len(many) == 21
    assert many[-1] == "and 80 more faults"


@pytest.mark.parametrize("name", ["a.py", "./a.py", "sub/a.py", "sub/../a.py", "..a/b.py", "ünï code.py", "./-x.py"])
def test_a_file_in_the_workspace_can_be_run(name: str) -> None:
    assert parsed(changed("experiment.filename", name)).filename == name


@pytest.mark.parametrize(
    "name",
    ["/a.py", "../a.py", "a/../../b.py", "..", ".", "a/..", "-c", "-mx", "--version", "a\0b", "a\nb", "\udc80.py"],
)
def test_no_other_file_can_be_run(name: str) -> None:
    assert fault("experiment.filename", name).startswith("experiment.filename: ")


def test_a_module_can_be_run() -> None:
    assert parsed(changed("experiment.args", ["a.b", "-x"], changed("experiment.filename", "-m"))).args == ("a.b", "-x")
    for args in ([], ["-c"], ["a..b"], ["a/b"], ["'a b'"]):
        (told,) = faults(changed("experiment.args", args, changed("experiment.filename", "-m")))
        assert told.startswith("experiment.args: ")


def test_args_are_words_of_a_shell_without_a_shell() -> None:
    given = ["'two words'", '"$HOME"', "`id`", "a b", 3, 0.5, "\\'", "''", "#", "*"]
    assert parsed(changed("experiment.args", given)).args == (
        *("two words", "$HOME", "`id`", "a", "b", "3", "0.5", "'", "", "#", "*"),
    )


@pytest.mark.parametrize(
    ("given", "version"), [(3, "3"), (3.6, "3.6"), (3.10, "3.1"), ("3.10", "3.10"), ("3.11.4", "3.11.4")]
)
def test_python_versions(given: str | float, version: str) -> None:
    assert parsed(changed("experiment.pythonver", given)).pythonver == version


@pytest.mark.parametrize(
    "label", ["", ".", "..", "a/b", "a\\b", "a\nb", "a\x00", "\x7f", "é" * 128, "_runner", "\ud800"]
)
def test_a_label_that_is_no_directory_is_refused(label: str) -> None:
    artifacts = {**vector("hello")["experiment"]["artifacts"], label: {"qualified": "file:///a"}}
    told = fault("experiment.artifacts", artifacts)
    assert told.startswith("experiment.artifacts.")
    assert "\n" not in told


def test_there_are_not_too_many_artifacts() -> None:
    many = {f"label{number}": {"qualified": "file:///a"} for number in range(1001)}
    assert fault("experiment.artifacts", many).startswith("experiment.artifacts: are 1001")


def test_unusual_labels_are_labels() -> None:
    labels = ["a b", "-x", "...", "é" * 127, "_singularity2"]
    artifacts = vector("hello")["experiment"]["artifacts"]
    artifacts |= {label: {"qualified": "file:///a"} for label in labels}
    assert set(labels) < set(parsed(changed("experiment.artifacts", artifacts)).artifacts)


# The environment and requirements


@pytest.mark.parametrize(
    ("given", "level"),
    [
        ("debug", "debug"),
        ("10", "debug"),
        (50, "crit"),
        (True, "info"),
        ("True", "info"),
        (False, None),
        ("", None),
        ("loud", "loud"),
    ],
)
def test_whatever_the_client_takes_for_a_level_is_one(given: object, level: str | None) -> None:
    assert parsed(changed("config.verbose", given)).verbose == level


def test_numbers_and_truth_become_text_in_the_environment() -> None:
    env = {"A": 1, "B": 1.5, "C": True, "D": False, "E": None, "F": "", "odd name": "x"}
    assert parsed(changed("config.env", env)).env == {
        **{"A": "1", "B": "1.5", "C": "true", "D": "false"},
        **{"F": "", "odd name": "x"},
    }


@pytest.mark.parametrize("env", [{"": "x"}, {"A=B": "x"}, {"A\0": "x"}, {"\ud800": "x"}, {"A": "hunter2\0"}, {"A": []}])
def test_a_variable_that_cannot_be_set_is_refused(env: dict[str, Any]) -> None:
    told = fault("config.env", env)
    assert told.startswith("config.env.")
    assert "hunter2" not in told


GOOD_REQUIREMENTS = [
    "six",
    " six==1.16.0 ",
    "pkg-resources==0.0.0",
    "studioml @ file:///home/me/studioml-0.0.49-py3-none-any.whl",
    "name[extra,other]>=1,<2 ; python_version < '3.12'",
    "-e git+https://github.com/a/b.git@0123abc#egg=b",
    "-e git+ssh://git@github.com/a/b.git@0123abc#egg=b",
    "--editable git+https://github.com/a/b.git#egg=b&subdirectory=c-d",
    "--editable=git+https://github.com/a/b.git#egg=b",
    "six # a - comment",
    "git+https://github.com/a/b-c.git",
    "git+ssh://git@github.com/a/b.git@v1-2#subdirectory=sub/c-d",
    "name @ https://host/name-1.0-py3-none-any.whl ; python_version >= '3'",
    "./dist/a.whl",
    "dist/a.whl[extra] ; sys_platform == 'linux'",
    "zope.interface==5.0-1",
]


@pytest.mark.parametrize("line", GOOD_REQUIREMENTS)
@pytest.mark.parametrize("path", ["experiment.pythonenv", "config.pip"])
def test_requirements_are_installable(line: str, path: str) -> None:
    wanted = parsed(changed(path, [line]))
    assert (wanted.pip or wanted.pythonenv) == (line.strip(),)


@pytest.mark.parametrize(
    "line",
    [
        "",
        "  ",
        None,
        7,
        "-r /etc/passwd",
        "--index-url=http://evil",
        "-i http://evil",
        "--extra-index-url http://evil",
        " -f http://evil",
        "-e .",
        "-e /home/me/project",
        "-e git+https://github.com/a/b.git",
        "-e git+https://github.com/a/b.git#egg=b --index-url=http://evil",
        "-e git+file:///srv/evil#egg=b",
        "-e git+ssh://-oProxyCommand=evil/b.git#egg=b",
        "six --global-option=x",
        "six --hash=sha256:00",
        "six -i http://evil",
        "six\n--index-url=http://evil",
        "six\r--index-url=http://evil",
        "six\x0b--index-url=http://evil",
        "six\x0c--index-url=http://evil",
        "six\x1c--index-url=http://evil",
        "six\x1d--index-url=http://evil",
        "six\x1e--index-url=http://evil",
        "six\x85--index-url=http://evil",
        "six\u2028--index-url=http://evil",
        "six\u2029--index-url=http://evil",
        "\u2028--index-url=http://evil",
        "six\t--index-url=http://evil",
        "six \\",
        "six\0",
        "six @ https://evil/${PIP_INDEX_URL}",
        "-e git+https://github.com/a/b.git#egg=../../b",
        "-e git+https://-oProxyCommand=evil/b.git#egg=b",
        "git+https://host/b.git@--upload-pack=evil",
        "git+https://host/b.git@%2d-upload-pack=evil",
        "git+ssh://-oProxyCommand=evil/b.git",
        "git+file:///srv/evil",
        "git+ext::sh -c evil",
        "six @ git+file:///srv/evil",
        "six @ file:relative-evil?x y",
        "six @ /srv/evil",
        "six @ ./evil",
        "hg+https://host/evil@--config=alias.id=!x",
        "svn+ssh://host/evil",
        "file:///etc/evil.tar.gz",
        "FILE:///etc/evil.tar.gz",
        "/etc/evil",
        "../evil",
        "sub/../../evil",
        "~/evil",
        "https://host/a.tar.gz#subdirectory=../../../srv/evil",
        "https://host/a.tar.gz#egg=a&subdirectory=%2e%2e/evil",
        "-e git+https://" + "#egg=" * 100_000 + " evil",
        "six" * 1000,
        "six\ud800",
    ],
)
def test_no_option_of_pip_can_be_reached(line: object) -> None:
    for path in ("experiment.pythonenv", "config.pip"):
        told = fault(path, ["six", line])
        assert told.startswith(f"{path}[1]: ")
        assert "evil" not in told


def test_comments_of_pip_freeze_are_left_out() -> None:
    lines = ["# -*- coding: utf-7 -*-", "## FIXME", "six", "# Editable install with no version control (x==1)"]
    assert parsed(changed("experiment.pythonenv", lines)).pythonenv == ("six",)


# Credentials and places


def artifact(document: Any = None, **members: Any) -> request.Artifact:
    """Return the artifact that these members make."""
    given = {"qualified": "s3://host:9000/b/k", **members}
    return parsed(changed("experiment.artifacts.extra", given, document)).artifacts["extra"]


def artifact_fault(document: Any = None, **members: Any) -> str:
    given = {"qualified": "s3://host:9000/b/k", **members}
    (told,) = faults(changed("experiment.artifacts.extra", given, document))
    return told


WITHOUT = changed("config.storage.credentials", None)


@pytest.mark.parametrize(
    ("given", "credentials"),
    [
        ({"aws": {"access_key": "a", "secret_access_key": "b"}}, AwsCredentials("a", "b")),
        ({"aws": {"access_key": "a", "secret_key": "b", "profile": "x"}}, AwsCredentials("a", "b")),
        ({"aws": {"access_key": "", "secret_access_key": ""}, "jwt": None}, AwsCredentials("", "")),
        (
            {"aws": {"access_key": "a", "secret_access_key": "b", "session_token": "c", "region": "eu-west-1"}},
            AwsCredentials("a", "b", "c", "eu-west-1"),
        ),
        (
            {"aws": {"access_key": "a", "secret_access_key": "b", "region_name": "eu-west-1"}},
            AwsCredentials("a", "b", region="eu-west-1"),
        ),
        (None, KEYS),
        ({}, KEYS),
        ("none", KEYS),
        ({"null": {"access_key": None, "secret_access_key": None}}, KEYS),
    ],
)
def test_s3_credentials(given: Any, credentials: AwsCredentials) -> None:
    assert artifact(credentials=given).credentials == credentials


@pytest.mark.parametrize(
    "given",
    [
        {"aws": "hunter2"},
        {"aws": {"access_key": "hunter2"}},
        {"aws": {"access_key": "", "secret_access_key": "hunter2"}},
        {"aws": {"secret_access_key": "hunter2"}},
        {"aws": {"profile": "hunter2"}},
        {"aws": {"access_key": "a", "secret_access_key": "b", "session_token": "hunter2\r\n"}},
        {"aws": {"access_key": "a", "secret_access_key": "b", "region": "hunter2/x y"}},
        {"jwt": {"token": "hunter2"}},
        {"plain": {"user": "me", "password": "hunter2"}},
        {"aws": {"access_key": "a", "secret_access_key": "hunter2"}, "jwt": {"token": "hunter2"}},
        ["hunter2"],
    ],
)
def test_bad_credentials_are_told_but_not_shown(given: Any) -> None:
    told = artifact_fault(credentials=given)
    assert told.startswith("experiment.artifacts.extra.credentials")
    assert "hunter2" not in told


def test_other_stores_take_other_credentials() -> None:
    token, password = {"jwt": {"token": "t"}}, {"plain": {"user": "me", "password": "p"}}
    assert artifact(qualified="gs://b/k", credentials=token).credentials == BearerToken("t")
    assert artifact(qualified="http://h/k", credentials=password).credentials == BasicCredentials("me", "p")
    # What belongs to the storage is not told to whoever else is named.
    for url in ("gs://b/k", "https://h/k", "file:///k"):
        assert artifact(qualified=url).credentials is None


def test_keys_of_the_environment_stand_in_only_where_the_operator_allows_it() -> None:
    env = {"AWS_ACCESS_KEY_ID": "from", "AWS_SECRET_ACCESS_KEY": "env"}
    own = vector("hello")["experiment"]["artifacts"]
    document = changed("config.env", env, WITHOUT)
    document["experiment"]["artifacts"] = {**own, "extra": {"qualified": "s3://h/b/k"}}
    assert parsed(document, allow_env_secrets=True).artifacts["extra"].credentials == AwsCredentials("from", "env")
    assert parsed(document, allow_env_secrets=True).artifacts["output"].credentials == KEYS
    (told,) = faults(document)
    assert told.startswith("experiment.artifacts.extra.credentials: ")
    del document["config"]["env"]["AWS_ACCESS_KEY_ID"]
    assert faults(document, allow_env_secrets=True) == (told,)


def test_a_storage_that_nobody_needs_may_have_any_credentials() -> None:
    assert parsed(changed("config.storage.credentials", {"aws": {"profile": "default"}}))


@pytest.mark.parametrize(
    ("region", "env", "settled"),
    [
        ("eu-west-1", "eu-west-2", "eu-west-1"),
        ("", "eu-west-2", "eu-west-2"),
        ("", "%AWS_DEFAULT_REGION%", "us-west-1"),
        ("", "", "us-west-1"),
    ],
)
def test_the_region_of_other_endpoints(region: str, env: str, settled: str) -> None:
    document = changed("config.env", {"AWS_DEFAULT_REGION": env})
    keys = {"aws": {"access_key": "a", "secret_access_key": "b", "region": region}}
    assert artifact(document, credentials=keys).location.region == settled
    amazon = artifact(document, credentials=keys, qualified="s3://s3-us-west-2.amazonaws.com/b/k").location
    assert (amazon.region, amazon.tls) == ("us-west-2", True)


@pytest.mark.parametrize("section", ["storage", "database"])
def test_tls_is_spoken_where_the_config_says_https(section: str) -> None:
    document = changed(f"config.{section}.endpoint", "https://Host:9000/")
    assert artifact(document).location.tls
    assert not artifact(document, qualified="s3://host:9001/b/k").location.tls
    assert not artifact(changed(f"config.{section}.endpoint", "http://host:9000")).location.tls
    assert artifact(changed(f"config.{section}.endpoint", "https://host"), qualified="s3://host:443/b/k").location.tls


def test_bucket_and_key_win_over_the_url() -> None:
    location = artifact(bucket="c", key="d/e.tar").location
    assert (location.bucket, location.key) == ("c", "d/e.tar")


def test_what_is_unpacked() -> None:
    assert artifact(key="a.tgz").unpack
    assert not artifact(key="a.tgz", unpack=False).unpack
    assert not artifact(key="a.txt", unpack=None).unpack
    assert artifact(qualified="https://host/a.tar.gz?version=2", unpack=True).unpack
    assert "'a.zip'" in artifact_fault(key="sub/a.zip", unpack=True)


def test_what_http_names_cannot_be_written() -> None:
    assert artifact(url="http://h/a", qualified=None).location.scheme == "http"
    assert artifact_fault(url="http://h/a", qualified=None, mutable=True).startswith(
        "experiment.artifacts.extra.mutable"
    )


def test_urls_are_shown_without_their_secrets() -> None:
    url = "https://host/a?version=1&X-Amz-Signature=hunter2&sig=hunter2&token=hunter2"
    assert artifact(qualified=url).qualified == "https://host/a?version=1&X-Amz-Signature=&sig=&token="
    assert "hunter2" not in artifact_fault(qualified="s3://me:hunter2@host/b/k")


@pytest.mark.parametrize("image", ["shub://a/b", "docker://python:3.11", "dockerhub://a/b", "library://a/b/c:tag"])
def test_a_container_image_is_code_enough(image: str) -> None:
    found = parsed(changed("experiment.artifacts", {"_singularity": {"qualified": image, "unpack": True}}))
    scheme, _, rest = image.partition("://")
    assert found.artifacts["_singularity"].location == Location(scheme, "", "", rest)
    assert not found.artifacts["_singularity"].unpack
    assert "extra.qualified" in artifact_fault(qualified=image)


def test_an_artifact_of_a_writer_in_go_has_every_member() -> None:
    """As the earlier runner's own tests wrote them, two slashes included."""
    given = {"bucket": "b", "key": "k.tar", "hash": "", "local": "", "mutable": True, "unpack": True}
    nothing = {"plain": None, "jwt": None, "aws": None}
    made = artifact(qualified="s3://host:9000//b/k.tar", saveFrequency=0, credentials=nothing, **given)
    assert str(made.location) == "s3://host:9000/b/k.tar"
    assert (made.credentials, made.save_frequency, made.hash, made.unpack) == (KEYS, None, "", True)


def test_the_clients_record() -> None:
    def record(key: str = "a", **database: str) -> request.Record | None:
        return parsed(changed("config.database", database, changed("experiment.key", key))).record

    local = record(type="local", endpoint="/data", bucket="db")
    assert local == request.Record(Location("file", "", "/data/db", "experiments/a"), None)
    amazon = record(type="S3", bucket="db")
    assert amazon
    assert str(amazon.location) == "s3://s3.amazonaws.com/db/experiments/a"
    assert amazon.credentials == KEYS
    assert record(type="s3", endpoint="http://h") is None
    assert record(type="http", endpoint="http://h", bucket="db") is None
    assert record(type="local", endpoint="data", bucket="db") is None
    assert record(type="local", endpoint="/data", bucket="../db") is None
    assert record("../a", type="local", endpoint="/data", bucket="db") is None
    assert parsed(changed("config.database", None)).record is None


# Time


def timed(**members: Any) -> Request:
    document = changed("config.experimentLifetime", members.pop("lifetime", None))
    document["experiment"] |= {"max_duration": None, "time_added": None, **members}
    return parsed(document)


def test_an_attempt_ends_at_the_earlier_limit() -> None:
    def limits(**members: Any) -> tuple[float, float]:
        wanted = timed(**members)
        return wanted.longest, wanted.end_of_life

    assert limits() == (96 * 3600, math.inf)
    assert limits(max_duration="1m") == (60, math.inf)
    assert limits(time_added=900.0, lifetime="2m") == (math.inf, 1020)
    assert limits(time_added=900.0, lifetime="2m", max_duration="10s") == (10, 1020)
    assert limits(lifetime="2m") == (96 * 3600, math.inf)


def test_an_experiment_dies_of_age() -> None:
    wanted = timed(time_added=900.0, lifetime="2m")
    assert not wanted.expired(1019.9)
    assert wanted.expired(1020.0)
    assert not timed(time_added=900.0).expired(1e12)


def test_an_identity_is_that_of_one_submission() -> None:
    first = parsed(vector("hello"))
    assert first.identity == parsed(vector("hello")).identity
    assert first.identity != parsed(changed("experiment.time_added", 1.5)).identity
    assert first.identity != parsed(changed("experiment.key", "other")).identity
    assert first.identity != parsed(changed("experiment.project", "other")).identity


# Mutations


def places(value: Any, path: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    """List the paths of all that is inside."""
    members = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    return [place for name, inner in members for place in ((*path, name), *places(inner, (*path, name)))]


STRANGE: list[Callable[[random.Random], Any]] = [
    lambda _: None,
    lambda chance: chance.choice([True, False, 0, -1, 1.5, 10**18, -(10**40), 1e300]),
    lambda chance: chance.choice(["", "\0", "\ud800", "../../x", "-x", "'", "a" * 100_000, "s3://", "\u2028", "٣"]),
    lambda chance: chance.choice([[], {}, [[]], [None], {"a": None}, {"": ""}, {"aws": 1}, {"\ud800": {}}]),
    lambda chance: "".join(chr(chance.randrange(0x300)) for _ in range(chance.randrange(40))),
]


@pytest.mark.parametrize("path", CLEAR, ids=lambda path: path.stem)
def test_whatever_a_message_becomes_it_parses_or_is_refused(path: Path) -> None:
    chance = random.Random(path.name)
    original = json.loads(path.read_bytes())
    outcomes = set()
    for _ in range(150):
        document = copy.deepcopy(original)
        for place in chance.sample(places(document), chance.randrange(1, 4)):
            inner = document
            try:
                for step in place[:-1]:
                    inner = inner[step]
                inner[place[-1]] = chance.choice(STRANGE)(chance)
            except (KeyError, IndexError, TypeError):
                continue  # what was there was replaced by an earlier mutation
        outcomes.add(_outcome(json.dumps(document).encode()))
    assert outcomes == {"parsed", "refused"}


@pytest.mark.parametrize("path", [*CLEAR[:3], *SEALED[:1]], ids=lambda path: path.stem)
def test_whatever_its_bytes_become_it_parses_or_is_refused(path: Path) -> None:
    chance = random.Random(path.name)
    for _ in range(150):
        body = bytearray(path.read_bytes())
        for _ in range(chance.randrange(1, 5)):
            start = chance.randrange(len(body))
            body[start : start + chance.randrange(3)] = chance.randbytes(chance.randrange(3))
        assert _outcome(bytes(body)) in ("parsed", "refused")


def _outcome(body: bytes) -> str:
    try:
        wanted = request.parse(body, allow_env_secrets=True)
    except RequestError as error:
        assert error.faults
        assert all(told.isprintable() and len(told) < 1000 for told in error.faults)
        assert "testing-secret" not in str(error)
        return "refused"
    assert wanted.identity
    assert wanted.longest > 0
    assert json.dumps(request.redacted(wanted.document))
    return "parsed"
