"""Where the bearer tokens for Google come from: the message, a service account's key, or the machine's own identity.

The grants: https://developers.google.com/identity/protocols/oauth2/service-account#httprest and
https://cloud.google.com/compute/docs/metadata/overview, of which GKE's Workload Identity is one more server.
"""

from __future__ import annotations

import json
import math
import os
import re
import threading
import time
from base64 import urlsafe_b64encode
from collections.abc import Callable
from contextlib import closing
from dataclasses import dataclass, field
from functools import cache, partial
from http.client import HTTPConnection, HTTPException
from pathlib import Path
from typing import Any
from urllib.parse import urlencode, urlsplit

from runner.errors import ConfigError, MachineError, Unavailable
from runner.native import compiled
from runner.storage.base import BearerToken, StoreOptions
from runner.storage.transport import ANSWER, Transport, Trust, passing, reason

_SCOPE = "https://www.googleapis.com/auth/devstorage.read_write"
_GRANT = "urn:ietf:params:oauth:grant-type:jwt-bearer"
# Seconds that an assertion is good for: the most that Google allows is 3600.
_ASSERTED = 3600
# Seconds before its end at which a token is renewed. Metadata servers hand out the same one until 300 s before its end.
_EARLY = 225.0

_MACHINE = "/computeMetadata/v1/instance/service-accounts/default/token"
# By address: where there is no Google, nobody should wait for a name server to say that there is no such name either.
_METADATA_HOST = "169.254.169.254"
# Seconds to wait for a connection to it, which is on the same physical machine, and for its answer, which comes from
# further away.
_METADATA_TIMEOUT = (1.0, 10.0)
_PRODUCT = Path("/sys/class/dmi/id/product_name")


@dataclass(frozen=True)
class Token:
    """A bearer token, "" for anonymous access. ``who`` it stands for is for sentences; ``lifetime`` is in seconds."""

    text: str = field(repr=False)
    who: str
    lifetime: float = math.inf


ANONYMOUS = Token("", "anonymous access")


class Identity:
    """Who we are to Google. Threads may share it. ``obtain`` gets a new token; ``clock`` is in seconds."""

    def __init__(self, obtain: Callable[[], Token], *, clock: Callable[[], float] = time.monotonic) -> None:
        self._obtain, self._clock = obtain, clock
        self._lock = threading.Lock()
        self._token: Token | None = None
        self._renewal = 0.0

    def token(self, *, refused: Token | None = None) -> Token:
        """Return a token that is good for a while; a new one, if one can be had, instead of one that was ``refused``.

        One try only. Raises Unavailable, and MachineError when this machine's identity cannot be used at all.
        """
        with self._lock:
            if self._token is None or self._token is refused or self._clock() >= self._renewal:
                self._token = self._obtain()
                # One that ends soon is not renewed at every call.
                lifetime = self._token.lifetime
                self._renewal = self._clock() + max(lifetime - _EARLY, lifetime / 2)
            return self._token


def identity(credentials: BearerToken | None, options: StoreOptions) -> Identity:
    """Return who is to reach an object: the message's own token, or else what the operator has for all messages."""
    if credentials is not None:
        own = Token(credentials.token, "the message's token")
        return Identity(lambda: own)
    host = (os.environ.get("GCE_METADATA_HOST") or _METADATA_HOST) if options.google_metadata else ""
    return shared(options.google_credentials, host)


@cache
def shared(key_file: str, metadata_host: str) -> Identity:
    """Return the one identity of this process that these options mean; each may be ""."""
    if key_file:
        return Identity(partial(_of_service_account, key_file))
    return Identity(partial(_of_machine, metadata_host)) if metadata_host else Identity(lambda: ANONYMOUS)


# Service accounts


@dataclass(frozen=True)
class _ServiceAccount:
    """What a key file says."""

    email: str
    key_id: str
    key: str = field(repr=False)
    token_uri: str


def _of_service_account(key_file: str) -> Token:
    """Trade a signed assertion for a token. The file is read each time: keys are exchanged while runners run."""
    account = _read(key_file)
    assertion = _assertion(account, int(time.time()))
    endpoint = account.token_uri.removesuffix(urlsplit(account.token_uri).path)
    transport = Transport(endpoint, Trust())
    body = urlencode({"grant_type": _GRANT, "assertion": assertion}).encode()
    headers = {"content-type": "application/x-www-form-urlencoded"}
    with closing(transport.send("POST", account.token_uri, headers, body)) as response:
        status, answer = response.status_code, transport.text(response)
    members = parse(answer)
    if status == 200 and (token := _granted(members, f"service account {account.email}")):
        return token
    if passing(status) or status == 200:
        raise Unavailable(f"{endpoint} is out of order or overloaded: it answered {status} to a request for a token")
    code = re.sub(r"[^a-z_]", "", str(members.get("error", "")))[:60]
    raise MachineError(
        f"{endpoint} refuses service account {account.email} a token: {status} {code}".rstrip()
        + f"; check that the key in {key_file} is still one of its keys, and that this machine's clock is right"
    )


def _read(key_file: str) -> _ServiceAccount:
    try:
        members = parse(Path(key_file).read_bytes())
    except OSError as error:
        raise MachineError(f"the Google credentials cannot be read: {error}") from error
    names = ("client_email", "private_key_id", "private_key", "token_uri")
    account = _ServiceAccount(*(str(members.get(name) or "") for name in names))
    whole = account.email and account.key and urlsplit(account.token_uri).scheme in ("http", "https")
    if members.get("type") != "service_account" or not whole:
        raise MachineError(
            f"{key_file} is not the JSON key file of a Google service account: make one with "
            "gcloud iam service-accounts keys create"
        )
    return account


def _assertion(account: _ServiceAccount, now: int) -> str:
    """Return a JWT (RFC 7519) that is signed with the account's key; ``now`` is in seconds since 1970."""
    head = {"alg": "RS256", "typ": "JWT", "kid": account.key_id}
    claims = {"iss": account.email, "scope": _SCOPE, "aud": account.token_uri, "iat": now, "exp": now + _ASSERTED}
    signed = b".".join(_base64(json.dumps(part).encode()) for part in (head, claims))
    return b".".join((signed, _base64(_sign(signed, account)))).decode()


def _sign(text: bytes, account: _ServiceAccount) -> bytes:
    try:
        with compiled("cryptography", "no Google service account can be used"):  # 50 ms, for those who need it
            from cryptography.exceptions import UnsupportedAlgorithm  # noqa: PLC0415
            from cryptography.hazmat.primitives.asymmetric.padding import PKCS1v15  # noqa: PLC0415
            from cryptography.hazmat.primitives.asymmetric.rsa import RSAPrivateKey  # noqa: PLC0415
            from cryptography.hazmat.primitives.hashes import SHA256  # noqa: PLC0415
            from cryptography.hazmat.primitives.serialization import load_pem_private_key  # noqa: PLC0415
    except ConfigError as error:
        raise MachineError(str(error)) from error
    try:
        key = load_pem_private_key(account.key.encode(), None)
    except (ValueError, TypeError, UnsupportedAlgorithm) as error:
        raise MachineError(f"the private key of service account {account.email} cannot be read") from error
    if not isinstance(key, RSAPrivateKey):
        raise MachineError(f"the private key of service account {account.email} is not one of RSA")
    return key.sign(text, PKCS1v15(), SHA256())


def _base64(data: bytes) -> bytes:
    return urlsafe_b64encode(data).rstrip(b"=")


# The machine's own identity


def _of_machine(host: str) -> Token:
    """Ask the metadata server. Where nothing speaks for Google there is none: anonymous access is left.

    On a machine of Google's silence is not taken for an answer: a new pod's server takes some seconds to come up.
    """
    certain = host != _METADATA_HOST or _is_googles()
    try:
        status, flavor, answer = _ask_metadata(host)
    except (OSError, HTTPException) as error:
        if certain:
            raise Unavailable(f"the metadata server {host} does not answer as it should: {reason(error)}") from error
        return ANONYMOUS
    if status == 404 or not (certain or flavor == "Google"):
        return ANONYMOUS
    if status == 200 and (token := _granted(parse(answer), "this machine's own identity")):
        return token
    if passing(status) or status == 200:
        raise Unavailable(f"the metadata server {host} is out of order: it answered {status} to a request for a token")
    raise MachineError(
        f"the metadata server {host} gives this machine no token: it answered {status}; give it a service account, or "
        "set --google-metadata=false"
    )


def _ask_metadata(host: str) -> tuple[int, str, bytes]:
    """Return status, ``Metadata-Flavor`` and body. It is asked directly: what a proxy said would be of another."""
    connect, answer = _METADATA_TIMEOUT
    with closing(HTTPConnection(host, timeout=connect)) as connection:
        connection.connect()
        connection.sock.settimeout(answer)
        # The header is demanded, so that no page in a browser and no redirection can ask for a token.
        connection.request("GET", _MACHINE, headers={"Metadata-Flavor": "Google"})
        response = connection.getresponse()
        return response.status, response.getheader("Metadata-Flavor", ""), response.read(ANSWER)


def _is_googles() -> bool:
    try:
        return _PRODUCT.read_text().startswith("Google")
    except OSError:
        return False


def _granted(members: dict[str, Any], who: str) -> Token | None:
    """Read what both kinds of server answer; None if it is no token."""
    text, lifetime = members.get("access_token"), members.get("expires_in")
    if isinstance(text, str) and text.isascii() and text.isprintable() and isinstance(lifetime, int | float):
        return Token(text, who, lifetime)
    return None


def parse(text: bytes) -> dict[str, Any]:
    """Return the members of a JSON object, none if it is no such thing."""
    try:
        members = json.loads(text)
    except (ValueError, RecursionError):
        return {}
    return members if isinstance(members, dict) else {}
