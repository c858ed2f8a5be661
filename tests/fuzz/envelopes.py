"""Envelopes: whatever is damaged or forged, only what the real client sealed and signed comes out.

An input is a message; or "!" and a payload, which is signed as it is: a signer may be hostile, too.
"""

from __future__ import annotations

import json
import re
import shutil
import tempfile
from functools import cache
from pathlib import Path

from runner.crypto.keys import KeyDirectory
from runner.crypto.private_keys import PrivateKeys
from runner.crypto.signing import Signer, read_signer
from runner.errors import RequestError
from runner.message import envelope, request
from runner.message.envelope import Envelopes
from runner.message.fields import printable
from tests.fuzz.mutation import JSON_TOKENS, JSON_WORDS, Mutator

_VECTORS = Path(__file__).parents[1] / "vectors"
_KEYS = _VECTORS / "keys"
_QUEUE = "rmq_cl_sm5"
_SEALED = [(_VECTORS / f"enc_{name}.json").read_bytes() for name in ("hello", "completion_service")]
_PAYLOADS = [json.loads(message)["message"]["payload"] for message in _SEALED]


def check(data: bytes) -> None:
    """Open a message."""
    message = _signed(data[1:]) if data[:1] == b"!" else data
    try:
        document = request.load(message)
        if request.is_envelope(document):
            sealed = envelope.read(document)
            body = _envelopes().open(sealed, _QUEUE)
            assert body in _bodies(), "what nobody has sealed comes out"
            assert data[:1] == b"!" or sealed.payload.decode() in _PAYLOADS, "what nobody has signed is opened"
    except RequestError as error:
        assert printable(str(error)), "an error's sentence breaks its line"
        assert len(str(error)) < 2000, "an error's sentence is endless"


def _signed(payload: bytes) -> bytes:
    members = {
        "payload": payload.decode(errors="replace"),
        "fingerprint": _signer().fingerprint,
        "signature": _signer().sign(payload),
    }
    return json.dumps({"message": members}).encode()


@cache
def _signer() -> Signer:
    return read_signer((_KEYS / "studioml_signing").read_bytes(), None)


@cache
def _bodies() -> list[bytes]:
    return [_envelopes().open(envelope.read(json.loads(message)), _QUEUE) for message in _SEALED]


@cache
def _envelopes() -> Envelopes:
    """A runner's, with the real client's keys; they are read once, and never looked at again."""
    with tempfile.TemporaryDirectory() as directory:
        signers, keys = Path(directory, "signers"), Path(directory, "keys")
        for path, name in ((keys / "encryption", "ssh-privatekey"), (keys / "passphrase", "ssh-passphrase")):
            path.mkdir(parents=True)
            (path / name).write_bytes(b"PassPhrase")
        signers.mkdir()
        shutil.copy(_KEYS / "studioml_signing.pub", signers / "rmq_")
        shutil.copy(_KEYS / "studioml_request.pem", keys / "encryption" / "ssh-privatekey")
        opener = Envelopes(KeyDirectory(signers, clock=lambda: 0.0), PrivateKeys(keys, clock=lambda: 0.0))
        opener.open(envelope.read(json.loads(_SEALED[0])), _QUEUE)
        return opener


ENVELOPES = Mutator(
    seeds=[*_SEALED, *(f"!{payload}".encode() for payload in _PAYLOADS)],
    words=(
        *JSON_WORDS,
        *rb""" "payload" "fingerprint" "signature" "message" "experiment" "," "=" "AAAA" "A" """.split(),
        b'"SHA256:' + b"A" * 43 + b'"',
    ),
    tokens=re.compile(JSON_TOKENS.pattern + rb"|[A-Za-z0-9+/]{4,}=*|,"),
)
