"""Which keys there are, with their fingerprints as ``ssh-keygen -l`` prints them."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

from runner.commands.doctor.base import Finding, Subject, fail, ok, skip, warn
from runner.crypto.private_keys import KEY, KEYS, PASSPHRASE, PASSPHRASES
from runner.errors import ConfigError


def messages(subject: Subject) -> Iterator[Finding]:
    """Look for the keys that open messages."""
    given = subject.settings
    directory = given.private_keys / KEYS
    paths = [path for path in _files(directory) if path.name.startswith(KEY)]
    for path in paths:
        yield from _private(path)
    if given.clear_text_messages:
        yield ok("messages need not be encrypted or signed (--clear-text-messages)")
    elif not paths:
        yield fail(
            f"no message can be accepted: there is no key at {directory / KEY}",
            "make some with studio-runner keys, or give --clear-text-messages where whoever can publish is trusted",
        )
    elif not _files(given.signers):
        yield fail(f"no message can be accepted: no signer has a key in {given.signers}", "put their public keys there")


def _private(path: Path) -> Iterator[Finding]:
    from runner.crypto.key_files import passphrase_of  # noqa: PLC0415 -- only who has keys pays for it
    from runner.crypto.sealing import read_private_key  # noqa: PLC0415
    from runner.crypto.signing import fingerprint_of  # noqa: PLC0415

    directory = path.parent.parent / PASSPHRASES
    passphrases = [directory / (PASSPHRASE + path.name.removeprefix(KEY)), directory / PASSPHRASE]
    passphrase = next((each for each in passphrases if each.exists()), None)
    try:
        key = read_private_key(path.read_bytes(), passphrase_of(passphrase.read_bytes() if passphrase else None))
    except ConfigError as error:
        yield fail(f"{path}: {error}", f"check the key, and its passphrase in {passphrases[-1]}")
        return
    yield ok(f"messages are opened with {path} ({key.key_size} bits, {fingerprint_of(key.public_key())})")
    if path.stat().st_mode & 0o007:
        yield warn(f"everybody on this machine can read {path}", f"chmod 600 {path}")


def signers(subject: Subject) -> Iterator[Finding]:
    """Look for the public keys of those who may submit."""
    yield from _directory(subject.settings.signers, "messages are accepted from", _of_signer)


def readers(subject: Subject) -> Iterator[Finding]:
    """Look for the public keys of those who read reports."""
    yield from _directory(subject.settings.report_readers, "reports are written for", _of_reader)


def _directory(directory: Path, meaning: str, fingerprint: Callable[[str], str]) -> Iterator[Finding]:
    """Tell of each key file: its name is the beginning of queues' names."""
    paths = _files(directory)
    if not paths:
        yield skip(f"there are no keys in {directory}")
    for path in paths:
        try:
            yield ok(f"queues {path.name}…: {meaning} the owner of {fingerprint(path.read_text())} ({path})")
        except (ConfigError, UnicodeDecodeError) as error:
            yield fail(f"{path}: {error}", "replace it, or remove it")


def _files(directory: Path) -> list[Path]:
    """List key files as keys.KeyFiles does."""
    names = [each for each in sorted(directory.iterdir()) if each.is_file()] if directory.is_dir() else []
    return [each for each in names if not each.name.startswith(".") and each.name != "info"]


def _of_signer(text: str) -> str:
    from runner.crypto.signing import read_verifier  # noqa: PLC0415

    return read_verifier(text).fingerprint


def _of_reader(text: str) -> str:
    from runner.crypto.sealing import read_public_key  # noqa: PLC0415
    from runner.crypto.signing import fingerprint_of  # noqa: PLC0415

    return fingerprint_of(read_public_key(text))
