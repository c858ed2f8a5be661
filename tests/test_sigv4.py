from __future__ import annotations

import hashlib
import json
from datetime import datetime, timezone
from pathlib import Path
from typing import Any
from urllib.parse import quote

import pytest

from runner.storage.base import AwsCredentials
from runner.storage.sigv4 import Signer, canonical_request, encode

DATA = Path(__file__).parent / "data" / "sigv4"
SUITE: dict[str, Any] = json.loads((DATA / "suite.json").read_text(encoding="utf-8"))
S3_EXAMPLES: dict[str, Any] = json.loads((DATA / "s3_examples.json").read_text(encoding="utf-8"))
EXAMPLE_KEY = AwsCredentials("AKIAIOSFODNN7EXAMPLE", "wJalrXUtnFEMI/K7MDENG/bPxRfiCYEXAMPLEKEY")
EXAMPLE_TIME = datetime(2013, 5, 24, tzinfo=timezone.utc)


def signed(case: dict[str, Any]) -> tuple[str, str, dict[str, str], str]:
    """Sign one case of the suite; returns method, URL, headers and the body's hash."""
    head, _, body = case["request"].partition("\n\n")
    first, *lines = head.strip("\n").split("\n")
    method, target = first.removesuffix(" HTTP/1.1").split(" ", 1)
    headers = dict(line.split(":", 1) for line in lines)
    context = case["context"]
    keys = context["credentials"]
    credentials = AwsCredentials(keys["access_key_id"], keys["secret_access_key"], keys.get("token", ""))
    url = f"https://{headers['Host']}" + quote(target, safe="/?&=%-._~")
    payload_hash = hashlib.sha256(body.encode()).hexdigest()
    if context["sign_body"]:
        headers["x-amz-content-sha256"] = payload_hash
    now = datetime.strptime(context["timestamp"], "%Y-%m-%dT%H:%M:%S%z")
    signer = Signer(credentials, context["region"], context["service"])
    return method, url, signer.sign(method, url, headers=headers, payload_hash=payload_hash, now=now), payload_hash


@pytest.mark.parametrize("name", SUITE)
def test_the_canonical_request_of_each_case_of_the_suite_is_the_published_one(name: str) -> None:
    method, url, headers, payload_hash = signed(SUITE[name])
    del headers["authorization"]
    assert canonical_request(method, url, headers, payload_hash) == SUITE[name]["canonical_request"]


@pytest.mark.parametrize("name", SUITE)
def test_the_signature_of_each_case_of_the_suite_is_the_published_one(name: str) -> None:
    _, _, headers, _ = signed(SUITE[name])
    assert headers["authorization"].endswith(f"Signature={SUITE[name]['signature']}")


@pytest.mark.parametrize("name", S3_EXAMPLES)
def test_the_signature_of_each_s3_example_is_the_documented_one(name: str) -> None:
    case = S3_EXAMPLES[name]
    signer = Signer(EXAMPLE_KEY, "us-east-1", "s3")
    headers = signer.sign(
        case["method"], case["url"], headers=case["headers"], payload_hash=case["payload_hash"], now=EXAMPLE_TIME
    )
    assert headers["authorization"].endswith(f"Signature={case['signature']}")
    assert headers["x-amz-content-sha256"] == case["payload_hash"]


def test_a_session_token_is_sent_and_signed() -> None:
    signer = Signer(AwsCredentials("AKID", "secret", session_token="token"), "us-east-1", "s3")
    headers = signer.sign("GET", "http://host:9000/b/k", headers={}, payload_hash="0" * 64, now=EXAMPLE_TIME)
    assert headers["x-amz-security-token"] == "token"
    assert "x-amz-security-token" in headers["authorization"]
    assert headers["host"] == "host:9000"


def test_everything_but_the_unreserved_characters_is_encoded_once() -> None:
    assert encode("ü +%25=&/~-._", safe="/") == "%C3%BC%20%2B%2525%3D%26/~-._"
    assert encode("a/b") == "a%2Fb"
