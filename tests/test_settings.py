"""Options: one field each, flag and variable equal, all mistakes at once."""

from __future__ import annotations

import dataclasses
import os
import sys
import tempfile
from pathlib import Path

import pytest

from runner.cli import main
from runner.errors import ConfigError
from runner.options.reading import HelpWanted, flag_of, read, variable_of
from runner.options.settings import Settings
from runner.order import Options
from runner.supervisor.orders import options_of

# Protocol section 9, word for word.
PROTOCOL = [
    "amqp-url",
    "amqp-mgt-url",
    "queue-match",
    "queue-mismatch",
    "sqs-certs",
    "sqs-timeout",
    "queue-root",
    "working-dir",
    "debug",
    "cpu-only",
    "max-cores",
    "max-mem",
    "max-disk",
    "encrypt-dir",
    "clear-text-messages",
    "request-signatures-dir",
    "response-signatures-dir",
    "prom-address",
    "schema-logs",
    "allow-env-secrets",
    "limit-tasks",
    "limit-idle-duration",
    "limit-interval",
    "cache-create",
    "cache-dir",
    "cache-size",
    "s3-ca",
    "s3-cert",
    "s3-key",
    "k8s-namespace",
    "k8s-configmap",
    "cpu-profile",
    "certs-dir",
    "slack-hook",
    "slack-room",
]

FIELDS = {flag_of(field): field for field in dataclasses.fields(Settings)}


def settings(*arguments: str, **environ: str) -> Settings:
    return read(Settings, ("--amqp-url", "amqp://host", *arguments), environ, usage="")[0]


def faults(*arguments: str, **environ: str) -> tuple[str, ...]:
    with pytest.raises(ConfigError) as caught:
        settings(*arguments, **environ)
    return caught.value.faults


def test_every_option_of_the_protocol_exists() -> None:
    assert {f"--{name}" for name in PROTOCOL} <= set(FIELDS)


def test_a_flag_and_its_variable_mean_the_same(tmp_path: Path) -> None:
    samples = {"DIR": str(tmp_path), "FILE": __file__, "SIZE": "2GiB", "DURATION": "90s", "N": "7", "BOOL": "true"}
    samples |= {"PROGRAM": sys.executable, "USER": "nobody", "IMAGE,…": "docker://python:3.11"}
    samples["PROFILE"] = str(tmp_path / "new")
    samples |= {"FORMAT": "json", "LEVEL": "debug", "ADDR": "127.0.0.1:9091"}
    for flag, field in FIELDS.items():
        if flag in (
            "--amqp-url",
            "--s3-cert",
            "--s3-key",
            "--sqs-endpoint",
            "--cache-dir",
            "--slack-hook",
            "--slack-room",
        ):
            continue
        if flag == "--run-as" and os.geteuid() != 0:
            continue
        text = samples.get(field.metadata["metavar"], "a.b")
        by_flag, by_variable = (
            settings(flag, text) if text != "true" else settings(flag),
            settings(**{variable_of(field): text}),
        )
        assert getattr(by_flag, field.name) == getattr(by_variable, field.name) != field.default or text == "true"


def test_an_attempt_is_told_what_the_options_say(tmp_path: Path) -> None:
    words = ["--debug", "--schema-logs=false", "--allow-env-secrets", "--allow-link-local", "--echo-output"]
    words += ["--nice", "7", "--store-patience", "9s", "--index-patience", "8s", "--env-allow", "A,B"]
    words += ["--file-root", str(tmp_path), "--s3-ca", __file__, "--s3-cert", __file__, "--s3-key", __file__]
    words += ["--max-processes", "77", "--max-file-size", "6gb", "--max-output", "5mb", "--hang-timeout", "1h"]
    words += ["--environments-age", "4d", "--environments-size", "3gb", "--uv", "never", "--enforce-ram=false"]
    words += ["--google-metadata=false", "--google-endpoint", "http://g:1", "--google-credentials", __file__]
    words += ["--cache-dir", str(tmp_path), "--cache-size", "2gb", "--working-dir", str(tmp_path)]
    given = settings(*words, "--singularity", sys.executable)
    told = options_of(given, cache_size=given.cache_size)
    others = {"file_roots": given.file_root, "link_local": given.allow_link_local, "echo": given.echo_output}
    for field in dataclasses.fields(Options):
        wanted = str(given.home) if field.name == "home" else others.get(field.name, getattr(given, field.name, None))
        assert getattr(told, field.name) == wanted, field.name
        assert getattr(told, field.name) != field.default or field.name in ("run_as", "google_metadata"), field.name


def test_the_flag_wins_over_the_variable() -> None:
    assert settings("--queue-match", "^a$", QUEUE_MATCH="^b$").queue_match == "^a$"


def test_an_empty_variable_counts_as_not_set() -> None:
    assert settings(MAX_CORES="", SLACK_HOOK="").max_cores == 0


def test_an_empty_address_of_metrics_turns_them_off_as_flag_and_as_variable() -> None:
    assert settings().prom_address is None
    assert settings("--prom-address=").prom_address == settings(PROM_ADDRESS="").prom_address == ""


def test_what_is_not_given_is_as_the_protocol_says() -> None:
    given = settings()
    assert (given.queue_match, given.queue_mismatch) == ("^(rmq|sqs|local)_.*$", "")
    assert (given.sqs_timeout, given.k8s_configmap, given.schema_logs) == (15.0, "studioml-go-runner", True)
    assert (given.max_cores, given.max_mem, given.max_disk, given.limit_tasks) == (0, 0, 0, 0)
    assert (given.limit_idle_duration, given.limit_interval, given.cache_dir) == (0.0, 0.0, "")
    switches = (given.debug, given.cpu_only, given.clear_text_messages, given.allow_env_secrets, given.cache_create)
    assert not any(switches)
    assert given.home == Path(tempfile.gettempdir()) / "studio-runner"


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (["--queue-mach", "^a$"], "--queue-mach is no option of this program: did you mean --queue-match? see --help"),
        (["-working_dir=/tmp"], "--working_dir is no option of this program: did you mean --working-dir? see --help"),
        (["--nonsense"], "--nonsense is no option of this program: see --help"),
        (["--debug", "extra"], "'extra' is no option of this program: see --help"),
    ],
)
def test_a_misspelt_option_is_one_mistake_and_the_right_one_is_named(words: list[str], told: str) -> None:
    assert faults(*words) == (told,)


@pytest.mark.parametrize("form", [["-max-cores=3"], ["--max-cores", "3"], ["-max-cores", "3"], ["--max-cores=3"]])
def test_the_earlier_runners_forms_of_flags_are_understood(form: list[str]) -> None:
    assert settings(*form).max_cores == 3


def test_sizes_and_durations_have_units() -> None:
    given = settings("--max-mem", "2 GiB", "--grace-period", "1h30m", "--max-disk", "3gb")
    assert (given.max_mem, given.grace_period, given.max_disk) == (2 * 2**30, 5400.0, 3_000_000_000)


def test_a_flag_without_a_value_is_true_and_can_be_made_false() -> None:
    assert settings("--debug").debug
    assert settings("-debug=T", DEBUG="0").debug
    for value in ("false", "f", "0", "F", "FALSE"):
        assert not settings(f"--schema-logs={value}").schema_logs


def test_a_repeated_option_collects(tmp_path: Path) -> None:
    first, second = tmp_path / "a", tmp_path / "b"
    first.mkdir()
    second.mkdir()
    assert settings("--file-root", str(first), "--file-root", str(second)).file_root == (str(first), str(second))
    assert settings(FILE_ROOT=f"{first},{second}").file_root == (str(first), str(second))


def test_all_mistakes_are_told_at_once() -> None:
    told = faults(
        "--amqp-url",
        "http://me:Secret@host",
        "--max-cores",
        "many",
        "--queue-match",
        "(",
        "--nonsense",
        "--s3-ca",
        "/no/such",
        DEBUG="perhaps",
    )
    assert len(told) == 6
    assert "--amqp-url cannot be understood: amqp[s]://USER:PASSWORD@HOST:PORT/VHOST is needed" in told
    for name in ("--max-cores", "--queue-match", "--nonsense", "--s3-ca", "DEBUG"):
        assert any(name in fault for fault in told)


def test_mistakes_of_options_and_of_options_together_are_told_at_once_but_no_mistake_twice() -> None:
    with pytest.raises(ConfigError) as caught:
        read(Settings, ["--max-cores", "many", "--s3-key", __file__, "--nonsense"], {}, usage="")
    for name in ("--max-cores", "--nonsense", "there are no queues", "--s3-cert and --s3-key"):
        assert any(name in fault for fault in caught.value.faults)
    for wrong in (["--amqp-url", "x"], ["--amqp-ulr", "amqp://h"], ["--queue-root", "/no/such"], ["--queue-root"]):
        with pytest.raises(ConfigError) as caught:
            read(Settings, wrong, {}, usage="")
        assert len(caught.value.faults) == 1
    assert len(faults("--cache-size", "999mb", "--cache-dir", "/tmp")) == 1


def test_googles_own_variables_count_where_ours_are_not_set() -> None:
    others = {"GOOGLE_APPLICATION_CREDENTIALS": __file__, "STORAGE_EMULATOR_HOST": "localhost:9023"}
    given = settings(**others)
    assert given.google_credentials == __file__
    assert given.google_endpoint == "http://localhost:9023"
    assert settings(**others, GOOGLE_ENDPOINT="https://gcs.example/").google_endpoint == "https://gcs.example"
    assert settings("--google-endpoint", "http://a:1", **others).google_endpoint == "http://a:1"
    assert "GOOGLE_APPLICATION_CREDENTIALS is '/no/such'" in faults(GOOGLE_APPLICATION_CREDENTIALS="/no/such")[0]
    for wrong in ("ftp://a", "https://user:hunter2@a", "https://a/b"):
        assert faults("--google-endpoint", wrong) == ("--google-endpoint must be http[s]://HOST[:PORT]",)


def test_keys_have_their_places_in_one_directory_or_each_its_own() -> None:
    def places(*arguments: str, **environ: str) -> list[str]:
        given = settings(*arguments, **environ)
        return [str(path) for path in (given.private_keys, given.signers, given.report_readers)]

    assert places() == ["certs/message", "certs/queues/signing", "certs/queues/response-encrypt"]
    assert places("--certs-dir", "/k") == ["/k/message", "/k/queues/signing", "/k/queues/response-encrypt"]
    others = {"REQUEST_SIGNATURES_DIR": "/s", "RESPONSE_SIGNATURES_DIR": "/r", "CERTS_DIR": "/k"}
    assert places("--encrypt-dir", "/m", **others) == ["/m", "/s", "/r"]


def test_the_hook_of_slack_is_a_secret_that_no_mistake_shows() -> None:
    assert settings(SLACK_HOOK="https://hooks.example/services/T0/B0/x").slack_hook.endswith("/x")
    (told,) = faults("--slack-hook", "hooks.example/T0/B0/hidden-Secret")
    assert "hidden-Secret" not in told and "incoming web hook" in told
    assert "--slack-hook" in faults("--slack-room", "#runs")[0]


def test_options_that_belong_together_are_checked_together() -> None:
    assert "--s3-key" in faults("--s3-cert", __file__)[0]
    with pytest.raises(ConfigError, match="no queue"):
        read(Settings, [], {}, usage="")


def test_a_flag_without_its_value_and_a_stray_word_are_told() -> None:
    assert "lacks its value" in faults("--max-cores")[0]
    assert "'stray'" in faults("stray")[0]


def test_help_shows_every_option_with_its_default() -> None:
    with pytest.raises(HelpWanted) as wanted:
        settings("--help")
    for flag in FIELDS:
        assert f"  {flag}" in str(wanted.value)
    assert "[30s]" in str(wanted.value)


def test_a_command_that_is_none_is_told_with_those_that_are(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["docter"]) == 2
    told = capsys.readouterr().err
    assert "'docter' is no command: they are doctor, explain" in told
    assert "attempt" not in told
