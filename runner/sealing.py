"""Messages that only the owner of an RSA key can read (protocol section 2).

A sealed message is ``base64(K),base64(N‖C)``: C is NaCl's secretbox of the body under a session key and the nonce N, K
the session key under RSA-OAEP. Import this module where it is used: its libraries take 50 ms.
"""

from __future__ import annotations

import secrets
from base64 import b64decode, b64encode
from collections.abc import Callable

from runner.errors import ConfigError, RequestError
from runner.native import compiled

with compiled("cryptography, PyNaCl and bcrypt", "no message can be encrypted or decrypted"):
    from cryptography.exceptions import UnsupportedAlgorithm
    from cryptography.hazmat.primitives import serialization
    from cryptography.hazmat.primitives.asymmetric.padding import MGF1, OAEP
    from cryptography.hazmat.primitives.asymmetric.rsa import RSAPrivateKey, RSAPublicKey
    from cryptography.hazmat.primitives.hashes import SHA256
    from nacl.exceptions import CryptoError
    from nacl.secret import SecretBox

_OAEP = OAEP(MGF1(SHA256()), SHA256(), label=None)
# What is shorter protects nothing; StudioML's keys have 4096 bits.
_FEWEST_BITS = 2048


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
    try:
        text = payload.encode("ascii") if isinstance(payload, str) else payload
        head, _, rest = text.strip().partition(b",")
        session = key.decrypt(b64decode(head, validate=True), _OAEP)
        return SecretBox(session).decrypt(b64decode(rest, validate=True))
    except (ValueError, CryptoError) as error:
        raise RequestError("the message cannot be decrypted") from error


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
    is_openssh = b"BEGIN OPENSSH PRIVATE KEY" in data
    load = serialization.load_ssh_private_key if is_openssh else serialization.load_pem_private_key
    try:
        key = _loaded(load, data, passphrase or None)
    except (ValueError, UnsupportedAlgorithm) as error:
        raise ConfigError(
            "the private key cannot be read: it is no key in PEM or OpenSSH's form, or it has another passphrase"
        ) from error
    if not isinstance(key, RSAPrivateKey):
        raise ConfigError("the private key is not one of RSA: make one with ssh-keygen -t rsa -b 4096 -m PEM")
    _check_length("private", key)
    return key


def _loaded(load: Callable[[bytes, bytes | None], object], data: bytes, passphrase: bytes | None) -> object:
    """Load a private key; the libraries raise TypeError when there is no passphrase, and when there is one too many."""
    try:
        return load(data, passphrase)
    except TypeError as error:
        if passphrase is None:
            raise ConfigError("the private key is protected by a passphrase, and none is given") from error
        return load(data, None)


def _check_length(which: str, key: RSAPublicKey | RSAPrivateKey) -> None:
    if key.key_size < _FEWEST_BITS:
        raise ConfigError(f"the {which} key has only {key.key_size} bits: it must have at least {_FEWEST_BITS}")
