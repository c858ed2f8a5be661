"""Envelopes: requests that are encrypted and signed, opened and made (protocol section 2).

A signature is checked before anything is decrypted, and whoever sent what is refused is told nothing.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from runner.crypto.keys import KeyDirectory
from runner.crypto.private_keys import PrivateKeys
from runner.errors import ConfigError, MachineError, RequestError
from runner.message.fields import SHOWN, Fields

if TYPE_CHECKING:
    from runner.crypto.sealing import PublicKey
    from runner.crypto.signing import Signer, Verifier


@dataclass(frozen=True)
class Envelope:
    """What an envelope holds but the hints, which nobody has signed."""

    payload: bytes
    fingerprint: str
    signature: str

    @property
    def name(self) -> str:
        """The same for every copy of what was signed, and for nothing else."""
        return hashlib.sha256(self.payload).hexdigest()


def read(document: object) -> Envelope:
    """Take apart what ``request.is_envelope`` says is one. Raises RequestError with all its faults."""
    faults: list[str] = []
    message = Fields(document if isinstance(document, dict) else {}, "", faults).child("message")
    payload, fingerprint, signature = (message.required(name) for name in ("payload", "fingerprint", "signature"))
    if not payload.isascii():
        message.fault("payload", "is not base64")
    if faults:
        raise RequestError(faults)
    return Envelope(payload.encode(), fingerprint, signature)


class Envelopes:
    """Opens envelopes with the runner's private keys, for those whose public keys are in a directory."""

    def __init__(self, signers: KeyDirectory, private_keys: PrivateKeys) -> None:
        self._signers, self._private_keys = signers, private_keys

    def open(self, envelope: Envelope, queue: str) -> bytes:
        """Return the request in an envelope that came from a queue.

        Raises RequestError when it must not be run, and MachineError when keys are missing that others may have.
        """
        try:
            self._check_newly(envelope, queue)
            return self._private_keys.open(envelope.payload)
        except ConfigError as error:
            raise MachineError(f"an encrypted message cannot be opened: {error}") from error

    def _check_newly(self, envelope: Envelope, queue: str) -> None:
        """Check the signature; with a key that has come or changed just now, too."""
        try:
            self._check(envelope, queue)
        except (RequestError, MachineError):
            if not self._signers.renew():
                raise
            self._check(envelope, queue)

    def _check(self, envelope: Envelope, queue: str) -> None:
        """Raise RequestError unless the owner of the queue's key has signed the payload."""
        verifier = self._verifier(queue)
        if envelope.fingerprint != verifier.fingerprint:
            raise RequestError(
                f"the message is signed with the key {SHOWN.repr(envelope.fingerprint)}, but that of queue {queue} is "
                f"{verifier.fingerprint}"
            )
        verifier.verify(envelope.payload, envelope.signature)

    def _verifier(self, queue: str) -> Verifier:
        from runner.crypto.signing import read_verifier  # noqa: PLC0415 -- only who has signed messages pays for it

        key = self._signers.find(queue)
        if key is None and self._signers.readable:
            raise RequestError(f"the message is signed, but no key in {self._signers.path} is for queue {queue}")
        if key is None:
            raise MachineError(f"a signature cannot be checked: the keys in {self._signers.path} are not there")
        if key.text is None:
            raise MachineError(f"a signature cannot be checked: {key.path} cannot be read")
        try:
            return read_verifier(key.text)
        except ConfigError as error:  # perhaps it is being written just now
            raise MachineError(f"a signature cannot be checked: {key.path}: {error}") from error


def made(document: Mapping[str, Any], recipient: PublicKey, signer: Signer) -> dict[str, Any]:
    """Encrypt a request for the owner of a key, sign it, and add the hints that clients do."""
    from runner.crypto.sealing import Sealer  # noqa: PLC0415

    experiment, config = document["experiment"], document["config"]
    payload = Sealer(recipient).seal(json.dumps(document).encode())
    return {
        "message": {
            "experiment": {name: experiment[name] for name in ("status", "pythonver")},
            "time_added": experiment["time_added"],
            "experiment_lifetime": config["experimentLifetime"],
            "resources_needed": experiment["resources_needed"],
            "payload": payload.decode(),
            "signature": signer.sign(payload),
            "fingerprint": signer.fingerprint,
        }
    }
