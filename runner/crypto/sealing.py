"""Messages that only the owner of an RSA key can read (protocol section 2).

A sealed message is ``base64(K),base64(N‖C)``: C is NaCl's secretbox of the body under a session key and the nonce N, K
the session key under RSA-OAEP. Import this module where it is used: its libraries take 50 ms.
"""

from __future__ import annotations

import secrets
from base64 import b64decode, b64encode
from typing import TypeAlias

from runner.crypto.key_files import load_private
from runner.errors import ConfigError, RequestError
from runner.native import compiled

with compiled("cryptography, PyNaCl and bcrypt", "no message can be encrypted or decrypted"):
    from cryptography.exceptions import UnsupportedAlgorithm
    from cryptography.hazmat.primitives import serialization
    from cryptography.hazmat.primitives.asymmetric import rsa
    from cryptography.hazmat.primitives.asymmetric.padding import MGF1, OAEP
    from cryptography.hazmat.primitives.asymmetric.rsa import RSAPrivateKey, RSAPublicKey
    from cryptography.hazmat.primitives.hashes import SHA256
    from nacl.exceptions import CryptoError
    from nacl.secret import SecretBox

PrivateKey: TypeAlias = RSAPrivateKey
PublicKey: TypeAlias = RSAPublicKey

_OAEP = OAEP(MGF1(SHA256()), SHA256(), label=None)
# What is shorter protects nothing; StudioML's keys have 4096 bits.
_FEWEST_BITS, _BITS = 2048, 4096
_CLOSED = "the message cannot be decrypted"


class Sealer:
    """Seals messages for the owner of a key, all under one session key: RSA is paid for once.

    Make a new one for each experiment: who learns one session key is to learn no more than that.
    """

    def __init__(self, key: RSAPublicKey) -> None:
        session = secrets.token_bytes(SecretBox.KEY_SIZE)
        self._box = SecretBox(session)
        self._head = b64encode(key.encrypt(session, _OAEP)) + b","

    def seal(self, body: bytes) -> bytes:
        """Return a sealed message, in ASCII. The nonce is new each time, and so are all bytes after the comma."""
        return self._head + b64encode(self._box.encrypt(body))


def open_sealed(payload: str | bytes, key: RSAPrivateKey) -> bytes:
    """Return the body of a sealed message. Raises RequestError, which does not tell a forger what was wrong."""
    head, box = split_sealed(payload)
    try:
        return SecretBox(key.decrypt(head, _OAEP)).decrypt(box)
    except (ValueError, CryptoError) as error:
        raise RequestError(_CLOSED) from error


def split_sealed(payload: str | bytes) -> tuple[bytes, bytes]:
    """Return K and N‖C of what has the form of a sealed message. Raises RequestError, in the same words."""
    try:
        text = payload.encode("ascii") if isinstance(payload, str) else payload
        head, _, rest = text.strip().partition(b",")
        session, box = b64decode(head, validate=True), b64decode(rest, validate=True)
    except ValueError as error:
        raise RequestError(_CLOSED) from error
    if not session or len(box) < SecretBox.NONCE_SIZE + SecretBox.MACBYTES:
        raise RequestError(_CLOSED)
    return session, box


def new_private_key() -> RSAPrivateKey:
    """Make a key; that takes some seconds."""
    return rsa.generate_private_key(65537, _BITS)


def read_public_key(text: str) -> RSAPublicKey:
    """Read PEM, ``RSA PUBLIC KEY`` or ``PUBLIC KEY``. Raises ConfigError: a sentence about "the public key"."""
    try:
        key = serialization.load_pem_public_key(text.encode())
    except (ValueError, UnsupportedAlgorithm) as error:
        raise ConfigError("the public key cannot be read: it must be an RSA PUBLIC KEY in PEM") from error
    if not isinstance(key, RSAPublicKey):
        raise ConfigError("the public key is not one of RSA: make one with ssh-keygen -t rsa -b 4096")
    _check_length("public", key)
    return key


def read_private_key(data: bytes, passphrase: bytes | None) -> RSAPrivateKey:
    """Read PEM of PKCS#1 or PKCS#8, or OpenSSH's form; a passphrase is not used where none is needed.

    Raises ConfigError: a sentence about "the private key".
    """
    key = load_private(data, passphrase)
    if not isinstance(key, RSAPrivateKey):
        raise ConfigError("the private key is not one of RSA: make one with ssh-keygen -t rsa -b 4096 -m PEM")
    _check_length("private", key)
    return key


def _check_length(which: str, key: RSAPublicKey | RSAPrivateKey) -> None:
    if key.key_size < _FEWEST_BITS:
        raise ConfigError(f"the {which} key has only {key.key_size} bits: it must have at least {_FEWEST_BITS}")
