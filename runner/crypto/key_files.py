"""Private keys as their files hold them: PEM of PKCS#1 or PKCS#8, or OpenSSH's form, with a passphrase or without.

Import this module where it is used: its libraries take 50 ms.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

from runner.errors import ConfigError
from runner.native import compiled

with compiled("cryptography, PyNaCl and bcrypt", "no message can be encrypted or decrypted"):
    from cryptography.exceptions import UnsupportedAlgorithm
    from cryptography.hazmat.primitives import serialization
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
    from cryptography.hazmat.primitives.asymmetric.rsa import RSAPrivateKey
    from cryptography.hazmat.primitives.serialization import Encoding, PrivateFormat, PublicFormat

T = TypeVar("T")


def content(path: str) -> bytes:
    """Read a file that an option names. Raises ConfigError."""
    try:
        return Path(path).expanduser().read_bytes()
    except OSError as error:
        raise ConfigError(f"{path} cannot be read: {error.strerror}") from error


def of_file(path: str, read: Callable[[bytes], T]) -> T:
    """Read a file as a key. Raises ConfigError, which names the file."""
    data = content(path)
    try:
        return read(data)
    except ConfigError as error:
        raise ConfigError(f"{path}: {error}") from error


def passphrase_of(data: bytes | None) -> bytes | None:
    """Return the passphrase that a file holds, None for none: the end of its line is no part of it."""
    return data.rstrip(b"\r\n") or None if data is not None else None


def load_private(data: bytes, passphrase: bytes | None) -> object:
    """Return the key in a file, of whatever kind; a passphrase is not used where none is needed.

    Raises ConfigError: a sentence about "the private key".
    """
    is_openssh = b"BEGIN OPENSSH PRIVATE KEY" in data
    load = serialization.load_ssh_private_key if is_openssh else serialization.load_pem_private_key
    try:
        return _loaded(load, data, passphrase or None)
    except (ValueError, UnsupportedAlgorithm) as error:
        raise ConfigError(
            "the private key cannot be read: it is no key in PEM or OpenSSH's form, or it has another passphrase"
        ) from error


def _loaded(load: Callable[[bytes, bytes | None], object], data: bytes, passphrase: bytes | None) -> object:
    """Load a private key; the libraries raise TypeError when there is no passphrase, and when there is one too many."""
    try:
        return load(data, passphrase)
    except TypeError as error:
        if passphrase is None:
            raise ConfigError("the private key is protected by a passphrase, and none is given") from error
        return load(data, None)


def pkcs1(key: RSAPrivateKey, passphrase: bytes | None) -> bytes:
    """Write a key as PEM, ``RSA PRIVATE KEY``."""
    return key.private_bytes(Encoding.PEM, PrivateFormat.TraditionalOpenSSL, _protection(passphrase))


def pkcs1_public(key: RSAPrivateKey) -> bytes:
    """Write its public half as PEM, ``RSA PUBLIC KEY``."""
    return key.public_key().public_bytes(Encoding.PEM, PublicFormat.PKCS1)


def openssh(key: Ed25519PrivateKey) -> bytes:
    """Write a key in OpenSSH's form, without a passphrase: StudioML's clients cannot ask for one."""
    return key.private_bytes(Encoding.PEM, PrivateFormat.OpenSSH, serialization.NoEncryption())


def openssh_public(key: Ed25519PrivateKey, comment: str) -> bytes:
    """Write its public half as the line ``ssh-ed25519 AAAA… comment``."""
    line = key.public_key().public_bytes(Encoding.OpenSSH, PublicFormat.OpenSSH)
    return line + b" " + comment.encode() + b"\n"


def _protection(passphrase: bytes | None) -> serialization.KeySerializationEncryption:
    return serialization.BestAvailableEncryption(passphrase) if passphrase else serialization.NoEncryption()
