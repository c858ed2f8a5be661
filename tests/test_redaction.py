from __future__ import annotations

import time

import pytest

from runner.secrets.redaction import public, redacted, secrets_of


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("amqp://guest:hunter2@host:5672/%2f", "amqp://host:5672/%2f"),
        ("git+https://hunter2@github.com/a/b@c#egg=b", "git+https://github.com/a/b@c#egg=b"),
        ("https://a:b@c@host/x", "https://host/x"),
        ("see http://a:b@h/ and http://c:d@i/", "see http://h/ and http://i/"),
        ("https://h/k?a=1&Signature=x&AWSAccessKeyId=y&b=2#c", "https://h/k?a=1&Signature=&AWSAccessKeyId=&b=2#c"),
        ("https://h/k?sv=1&sig=x", "https://h/k?sv=1&sig="),
        ("me@example.org", "me@example.org"),
        ("s3://host:9000/b/k@2.tar", "s3://host:9000/b/k@2.tar"),
        ("what? a=b", "what? a=b"),
    ],
)
def test_a_url_is_shown_without_its_secrets(text: str, shown: str) -> None:
    assert public(text) == shown


def test_names_tell_what_is_secret() -> None:
    env = {
        "MYSQL_PWD": "hunter-2",
        "CI_JWT": "ey.1",
        "AZURE_CONNECTION_STRING": "Key=x",
        "AUTHOR": "me",
        "PWD": "/work/dir",
    }
    aws = {"region": "eu-west-1", "region_name": "eu-west-2", "profile": "one", "profile_name": "two"}
    config = {
        "env": env,
        "database": {"credentials": {"plain": {"user": "u", "password": 20261127}}},
        "storage": {"credentials": {"aws": aws}},
    }
    assert secrets_of({"config": config}) == {"hunter-2", "ey.1", "Key=x", "20261127"}


@pytest.mark.parametrize("unit", ["?key=", "??", "//", "//a", "&keykey", "//@", "?a", "://a:b@"])
def test_hostile_text_costs_no_more_than_its_length(unit: str) -> None:
    began = time.process_time()
    public(unit * 100_000)
    # Anything quadratic takes minutes over this.
    assert time.process_time() - began < 5


def test_every_credential_is_taken_out_of_a_message() -> None:
    secret = "hunter2"
    document = {
        "experiment": {
            "key": "kept",
            "artifacts": {
                "a": {
                    "key": "kept",
                    "qualified": f"s3://x:{secret}@h/b/k",
                    "credentials": {"aws": {"access_key": secret}},
                }
            },
            "info": [{"secret_access_key": secret, "password": secret, "tokenizer": "kept", "n": 1, "none": None}],
            "pythonenv": [f"x @ git+https://{secret}@h/x"],
            "accessKey": secret,
        },
        "config": {
            "env": {
                "HF_TOKEN": secret,
                "MY_KEY": secret,
                "DB_PASSWD": secret,
                "PASS": secret,
                "MYSQL_PWD": secret,
                "CI_JWT": secret,
                "KIT": "kept",
            },
            "cloud": {"queue": {"rmq": f"amqp://{secret}/"}, "zone": "kept"},
            "database": {"credentials": {"plain": {"user": "u", "password": secret}}, "authentication": "kept"},
            "slack_hook": f"https://h/{secret}",
            "pem": f"-----BEGIN RSA PRIVATE KEY-----\n{secret}",
            "server": {"url": f"http://h/?token={secret}"},
        },
    }
    before = repr(document)
    assert redacted(document) == {
        "experiment": {
            "key": "kept",
            "artifacts": {"a": {"key": "kept", "qualified": "s3://h/b/k"}},
            "info": [{"tokenizer": "kept", "n": 1, "none": None}],
            "pythonenv": ["x @ git+https://h/x"],
        },
        "config": {
            "env": {"KIT": "kept"},
            "cloud": {"zone": "kept"},
            "database": {"authentication": "kept"},
            "pem": "(removed)",
            "server": {"url": "http://h/?token="},
        },
    }
    assert repr(document) == before


@pytest.mark.parametrize("config", [None, [], {"env": []}, {"env": None, "cloud": "x"}, {"cloud": {"queue": 1}}])
def test_an_odd_config_is_no_hindrance(config: object) -> None:
    assert "config" in redacted({"experiment": {}, "config": config})
