"""Signatures of messages: Ed25519 over the text of the payload (protocol section 2; RFC 8032).

Import this module where it is used: its libraries take 50 ms.
"""

from __future__ import annotations

import hashlib
from base64 import b64decode, b64encode
from typing import TypeAlias

from runner.crypto.key_files import load_private
from runner.errors import ConfigError, RequestError
from runner.native import compiled

with compiled("cryptography, PyNaCl and bcrypt", "no signature can be made or checked"):
    from cryptography.exceptions import InvalidSignature, UnsupportedAlgorithm
    from cryptography.hazmat.primitives import serialization
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey
    from cryptography.hazmat.primitives.asymmetric.rsa import RSAPublicKey

_OPENSSH = (serialization.Encoding.OpenSSH, serialization.PublicFormat.OpenSSH)
# What stands before the 64 bytes in the SSH wire form: both strings' lengths, and the first one (RFC 8709).
_WIRE_HEAD = b"\0\0\0\x0bssh-ed25519\0\0\0\x40"
_SIGNATURE_BYTES = 64


PrivateKey: TypeAlias = Ed25519PrivateKey


def new_private_key() -> Ed25519PrivateKey:
    """Make a key."""
    return Ed25519PrivateKey.generate()


def fingerprint_of(key: Ed25519PublicKey | RSAPublicKey) -> str:
    """Name a key as ``ssh-keygen -l -E sha256`` does."""
    blob = b64decode(key.public_bytes(*_OPENSSH).split()[1])
    return "SHA256:" + b64encode(hashlib.sha256(blob).digest()).decode().rstrip("=")


class Verifier:
    """Checks what the owner of a public key has signed."""

    def __init__(self, key: Ed25519PublicKey) -> None:
        self._key = key
        self.fingerprint = fingerprint_of(key)

    def verify(self, payload: bytes, signature: str) -> None:
        """Return when this is the owner's signature of these bytes. Raises RequestError."""
        try:
            self._key.verify(_signature_in(signature), payload)
        except (ValueError, InvalidSignature) as error:
            raise RequestError("the message's signature is not valid") from error


def _signature_in(text: str) -> bytes:
    """Return the 64 bytes of a signature, which stand alone or in the SSH wire form. Raises ValueError.

    There is one text for each signature: base64 with other padding or stray bits is none.
    """
    data = b64decode(text, validate=True)
    if b64encode(data).decode() != text:
        raise ValueError("base64 with bits that mean nothing")
    signature = data.removeprefix(_WIRE_HEAD) if len(data) > _SIGNATURE_BYTES else data
    if len(signature) != _SIGNATURE_BYTES:
        raise ValueError("neither a signature nor its SSH wire form")
    return signature


def read_verifier(text: str) -> Verifier:
    """Read a line ``ssh-ed25519 AAAA… comment``. Raises ConfigError: a sentence about "the public key"."""
    lines = [line for line in text.splitlines() if line.strip()]
    if len(lines) != 1:
        raise ConfigError(f"the public key must be one line, ssh-ed25519 AAAA… comment, but there are {len(lines)}")
    try:
        key = serialization.load_ssh_public_key(lines[0].strip().encode())
    except (ValueError, UnsupportedAlgorithm) as error:
        raise ConfigError("the public key cannot be read: it must be a line ssh-ed25519 AAAA… comment") from error
    if not isinstance(key, Ed25519PublicKey):
        raise ConfigError("the public key is not one of Ed25519: make one with ssh-keygen -t ed25519")
    return Verifier(key)


class Signer:
    """Signs payloads with a private key."""

    def __init__(self, key: Ed25519PrivateKey) -> None:
        self._key = key
        self.fingerprint = fingerprint_of(key.public_key())

    def sign(self, payload: bytes) -> str:
        """Return the signature of these bytes, as clients write it."""
        return b64encode(self._key.sign(payload)).decode()


def read_signer(data: bytes, passphrase: bytes | None) -> Signer:
    """Read a signer's private key. Raises as ``read_private_key``."""
    return Signer(read_private_key(data, passphrase))


def read_private_key(data: bytes, passphrase: bytes | None) -> Ed25519PrivateKey:
    """Read a private key, in OpenSSH's form or PEM. Raises ConfigError: a sentence about "the private key"."""
    key = load_private(data, passphrase)
    if not isinstance(key, Ed25519PrivateKey):
        raise ConfigError("the private key is not one of Ed25519: make one with ssh-keygen -t ed25519")
    return key
