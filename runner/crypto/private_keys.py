"""The private keys that open messages: the directory ``--encrypt-dir`` (protocol section 2).

They are ``encryption/ssh-privatekey`` and all other files there whose names begin so: an old key opens old messages
while a new one is in use. The passphrase of ``ssh-privatekey-old`` is ``passphrase/ssh-passphrase-old``, or where that
is not there ``passphrase/ssh-passphrase``.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

from runner.crypto.keys import KeyFiles, Troubles
from runner.errors import ConfigError, MachineError, RequestError

if TYPE_CHECKING:
    from runner.crypto.sealing import PrivateKey

log = logging.getLogger(__name__)

KEYS, PASSPHRASES = "encryption", "passphrase"
KEY, PASSPHRASE = "ssh-privatekey", "ssh-passphrase"


class PrivateKeys:
    """The keys in a directory, as they are now. Each is read once: that takes half a second.

    ``clock`` gives monotonic seconds.
    """

    def __init__(self, path: Path, *, clock: Callable[[], float]) -> None:
        self.path = path
        self._files = KeyFiles(path / KEYS, clock=clock)
        self._passphrases = KeyFiles(path / PASSPHRASES, clock=clock)
        self._sources: dict[str, tuple[bytes | None, bytes | None]] = {}
        self._keys: dict[str, PrivateKey] = {}
        self._faults: dict[str, str] = {}
        self._troubles = Troubles()

    def check(self) -> int:
        """Return how many keys there are. Raises ConfigError when there are files of keys, and none can be used."""
        self._load()
        if self._faults and not self._keys:
            raise ConfigError(self._faults.values())
        self._troubles.tell(self._faults.values())
        return len(self._keys)

    def open(self, payload: bytes) -> bytes:
        """Return the body of a sealed message.

        Raises RequestError when it is none, or sealed for other keys than ours, and MachineError when it may be for
        one of ours that is missing or cannot be used.
        """
        from runner.crypto.sealing import split_sealed  # noqa: PLC0415 -- only who has sealed messages pays for it

        split_sealed(payload)
        body = self._opened(payload)
        if body is None and self._renew():
            body = self._opened(payload)
        if body is not None:
            return body
        if self._faults or not self._keys:
            why = "; ".join(self._faults.values()) or f"there is no {KEYS}/{KEY} in {self.path}"
            raise MachineError(f"an encrypted message cannot be opened: {why}")
        raise RequestError(f"the message is encrypted for another key than those in {self.path}")

    def _opened(self, payload: bytes) -> bytes | None:
        from runner.crypto.sealing import open_sealed  # noqa: PLC0415

        self._load()
        self._troubles.tell(self._faults.values())
        for key in self._keys.values():
            try:
                return open_sealed(payload, key)
            except RequestError:
                continue
        return None

    def _renew(self) -> bool:
        looked = [files.renew() for files in (self._files, self._passphrases)]
        return any(looked)

    def _load(self) -> None:
        """Read what has changed, and forget what has gone."""
        sources = self._current()
        for name in set(self._sources) - set(sources):
            self._forget(name)
        for name in sorted(sources):
            if self._sources.get(name) != sources[name]:
                self._forget(name)
                self._read(name, *sources[name])
        self._sources = sources

    def _current(self) -> dict[str, tuple[bytes | None, bytes | None]]:
        passphrases = self._passphrases.contents()
        found = {}
        for name, data in self._files.contents().items():
            if name.startswith(KEY):
                own = PASSPHRASE + name.removeprefix(KEY)
                found[name] = (data, passphrases[own] if own in passphrases else passphrases.get(PASSPHRASE))
        return found

    def _forget(self, name: str) -> None:
        self._keys.pop(name, None)
        self._faults.pop(name, None)

    def _read(self, name: str, data: bytes | None, passphrase: bytes | None) -> None:
        from runner.crypto.key_files import passphrase_of  # noqa: PLC0415
        from runner.crypto.sealing import read_private_key  # noqa: PLC0415

        path = self.path / KEYS / name
        if data is None:
            self._faults[name] = f"{path} cannot be read"
            return
        try:
            self._keys[name] = read_private_key(data, passphrase_of(passphrase))
            log.info("messages are opened with %s", path)
        except ConfigError as error:
            self._faults[name] = f"{path}: {error}"
