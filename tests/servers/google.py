"""Google's identities for tests: the token endpoint, the metadata server, and who may do what with which token.

They are parts of the server that a store is behind too, at one address, as tests need no more.
"""

from __future__ import annotations

import json
import secrets
import time
from base64 import urlsafe_b64decode
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs

from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric.padding import PKCS1v15
from cryptography.hazmat.primitives.asymmetric.rsa import RSAPrivateKey, generate_private_key
from cryptography.hazmat.primitives.hashes import SHA256

EMAIL = "runner@tests.iam.gserviceaccount.com"
SCOPES = {
    "https://www.googleapis.com/auth/devstorage.read_write",
    "https://www.googleapis.com/auth/cloud-platform",
}


def new_key() -> RSAPrivateKey:
    return generate_private_key(65537, 2048)


def pem(key: RSAPrivateKey) -> str:
    """Write a key down as Google's key files have it."""
    form = (serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())
    return key.private_bytes(*form).decode()


@dataclass
class Identities:
    """What the servers know: who has which key, and which tokens are good until when (seconds since 1970).

    ``lifetime`` is that of new tokens, in seconds; ``behind`` how far the servers' clock is behind; ``machine`` says
    whether the machine has an identity, and ``metadata_asked`` counts the requests for it.
    """

    key: RSAPrivateKey = field(default_factory=new_key)
    tokens: dict[str, float] = field(default_factory=dict)
    lifetime: int = 3600
    behind: int = 0
    machine: bool = True
    metadata_asked: int = 0

    def issue(self) -> str:
        """Make a token."""
        token = f"ya29.{secrets.token_urlsafe(30)}"
        self.tokens[token] = time.time() + self.lifetime
        return token

    def knows(self, authorization: str) -> bool:
        """Tell whether this header has a good token in it."""
        scheme, _, token = authorization.partition(" ")
        return scheme == "Bearer" and self.tokens.get(token, 0) > time.time()

    def granted(self) -> dict[str, Any]:
        return {"access_token": self.issue(), "expires_in": self.lifetime, "token_type": "Bearer"}

    def exchange(self, form: str, audience: str) -> tuple[int, dict[str, Any]]:
        """Check an assertion as Google does, and answer it."""
        fields = parse_qs(form)
        try:
            assert fields["grant_type"] == ["urn:ietf:params:oauth:grant-type:jwt-bearer"]
            signed, _, signature = fields["assertion"][0].rpartition(".")
            head, claims = (json.loads(_decoded(part)) for part in signed.split("."))
            self.key.public_key().verify(_decoded(signature), signed.encode(), PKCS1v15(), SHA256())
            assert head == {"alg": "RS256", "typ": "JWT", "kid": "k1"}
            assert claims["iss"] == EMAIL
            assert claims["aud"] == audience
            assert set(claims["scope"].split()) <= SCOPES
            now = time.time() - self.behind
            assert now - 300 < claims["iat"] < now + 300
            assert claims["iat"] < claims["exp"] <= claims["iat"] + 3600
        except (AssertionError, KeyError, ValueError, InvalidSignature):
            return 400, {"error": "invalid_grant", "error_description": "Invalid JWT"}
        return 200, self.granted()

    def key_file(self, path: Path, endpoint: str, **changes: Any) -> str:
        """Write the service account's key file, with some members changed; return its path."""
        account = {
            "type": "service_account",
            "project_id": "tests",
            "private_key_id": "k1",
            "private_key": pem(self.key),
            "client_email": EMAIL,
            "token_uri": f"{endpoint}/token",
        }
        path.write_text(json.dumps({**account, **changes}))
        return str(path)


def _decoded(text: str) -> bytes:
    return urlsafe_b64decode(text + "=" * (-len(text) % 4))


class GoogleHandler(BaseHTTPRequestHandler):
    """Serves identities; whoever serves objects says how in ``objects``."""

    protocol_version = "HTTP/1.1"
    identities: Identities

    def _serve(self) -> None:
        body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
        authorization = self.headers.get("Authorization", "")
        if self.path == "/token":
            self.reply(*self.identities.exchange(body.decode(), f"http://{self.headers['Host']}/token"))
        elif self.path.startswith("/computeMetadata/"):
            self._metadata()
        elif authorization and not self.identities.knows(authorization):
            self.fail(401, "authError", "Invalid Credentials")
        else:
            self.objects(body, anonymous=not authorization)

    do_GET = do_PUT = do_POST = do_DELETE = _serve  # noqa: N815

    def objects(self, body: bytes, *, anonymous: bool) -> None:
        """Serve what is no identity."""
        raise NotImplementedError

    def _metadata(self) -> None:
        self.identities.metadata_asked += 1
        flavor = {"Metadata-Flavor": "Google"}
        if self.headers.get("Metadata-Flavor") != "Google":
            self.reply(403, {})
        elif self.identities.machine and self.path.endswith("/service-accounts/default/token"):
            self.reply(200, self.identities.granted(), flavor)
        else:
            self.reply(404, {}, flavor)

    def fail(self, status: int, reason: str, message: str) -> None:
        """Answer with an error as Google's APIs do."""
        error = {"code": status, "message": message, "errors": [{"reason": reason, "message": message}]}
        self.reply(status, {"error": error})

    def reply(self, status: int, body: bytes | dict[str, Any], headers: dict[str, str] | None = None) -> None:
        data = body if isinstance(body, bytes) else json.dumps(body).encode()
        self.send_response_only(status)
        for name, value in {"Content-Length": str(len(data)), **(headers or {})}.items():
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(data)

    def log_message(self, *_: object) -> None:
        """Say nothing."""
