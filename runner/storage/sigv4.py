"""AWS Signature Version 4: pure, so that it can be held against the published vectors.

The algorithm: https://docs.aws.amazon.com/AmazonS3/latest/API/sig-v4-header-based-auth.html
"""

from __future__ import annotations

import hashlib
import hmac
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime
from urllib.parse import quote, unquote, urlsplit

from runner.storage.base import AwsCredentials

ALGORITHM = "AWS4-HMAC-SHA256"


def encode(text: str, safe: str = "") -> str:
    """Percent-encode the UTF-8 of ``text`` as AWS does: all but letters, digits, ``-._~`` and what is ``safe``."""
    return quote(text, safe=safe + "~")


@dataclass(frozen=True)
class Signer:
    """Signs requests to one service of one region with one key pair (not an anonymous one)."""

    credentials: AwsCredentials
    region: str
    service: str

    def sign(
        self, method: str, url: str, *, headers: Mapping[str, str], payload_hash: str, now: datetime
    ) -> dict[str, str]:
        """Return ``headers`` and those that authenticate the request, ``host`` among them, in lower case.

        ``url`` is what will be sent, its path encoded once: the path is signed as it stands, never normalised, as S3
        wants it. ``payload_hash`` is the SHA-256 of the body, in hexadecimal. ``now`` is in UTC.
        """
        stamp = now.strftime("%Y%m%dT%H%M%SZ")
        signed = self._complete(headers, urlsplit(url).netloc, stamp, payload_hash)
        names = ";".join(sorted(signed))
        scope = f"{stamp[:8]}/{self.region}/{self.service}/aws4_request"
        request = canonical_request(method, url, signed, payload_hash)
        text = "\n".join((ALGORITHM, stamp, scope, hashlib.sha256(request.encode()).hexdigest()))
        signature = hmac.new(self._key(stamp[:8]), text.encode(), hashlib.sha256).hexdigest()
        credential = f"{self.credentials.access_key}/{scope}"
        authorization = f"{ALGORITHM} Credential={credential}, SignedHeaders={names}, Signature={signature}"
        return {**signed, "authorization": authorization}

    def _complete(self, headers: Mapping[str, str], host: str, stamp: str, payload_hash: str) -> dict[str, str]:
        complete = {name.lower(): value for name, value in headers.items()}
        complete |= {"host": host, "x-amz-date": stamp}
        if self.service == "s3":
            complete["x-amz-content-sha256"] = payload_hash
        if self.credentials.session_token:
            complete["x-amz-security-token"] = self.credentials.session_token
        return complete

    def _key(self, day: str) -> bytes:
        key = f"AWS4{self.credentials.secret_key}".encode()
        for part in (day, self.region, self.service, "aws4_request"):
            key = hmac.digest(key, part.encode(), "sha256")
        return key


def canonical_request(method: str, url: str, headers: Mapping[str, str], payload_hash: str) -> str:
    """Return the text that is hashed and signed. The names of ``headers`` are in lower case; all of them count."""
    parts = urlsplit(url)
    lines = [f"{name}:{' '.join(headers[name].split())}" for name in sorted(headers)]
    names = ";".join(sorted(headers))
    return "\n".join((method, parts.path or "/", _canonical_query(parts.query), *lines, "", names, payload_hash))


def _canonical_query(query: str) -> str:
    pairs = [pair.partition("=") for pair in query.split("&") if pair]
    encoded = sorted((encode(unquote(name)), encode(unquote(value))) for name, _, value in pairs)
    return "&".join(f"{name}={value}" for name, value in encoded)
