"""Signatures: those of the real client are valid in both encodings, and nothing else is."""

from __future__ import annotations

import json
import subprocess
from base64 import b64decode, b64encode
from pathlib import Path
from shutil import which

import pytest
from cryptography.hazmat.primitives.serialization import load_ssh_public_key

from runner.crypto.signing import fingerprint_of, new_private_key, read_signer, read_verifier
from runner.errors import ConfigError, RequestError

VECTORS = Path(__file__).resolve().parent / "vectors"
KEYS = VECTORS / "keys"
PUBLIC = (KEYS / "studioml_signing.pub").read_text()
SEALED = sorted(path for path in VECTORS.glob("enc_*.json") if path.name.count(".") == 1)
MESSAGES = [json.loads(path.read_text())["message"] for path in SEALED]
HELLO = MESSAGES[-1]
WIRE_HEAD = b"\0\0\0\x0bssh-ed25519\0\0\0\x40"


def valid(signature: str, payload: bytes = HELLO["payload"].encode()) -> bool:
    try:
        read_verifier(PUBLIC).verify(payload, signature)
    except RequestError as error:
        assert str(error) == "the message's signature is not valid"
        return False
    return True


def text(data: bytes | bytearray) -> str:
    return b64encode(data).decode()


RAW = b64decode(HELLO["signature"])
WIRE = WIRE_HEAD + RAW


@pytest.mark.parametrize("message", MESSAGES, ids=[path.stem for path in SEALED])
def test_the_real_clients_signatures_are_valid_and_their_fingerprints_right(message: dict[str, str]) -> None:
    assert valid(message["signature"], message["payload"].encode())
    assert message["fingerprint"] == read_verifier(PUBLIC).fingerprint


def test_there_are_signatures_of_the_real_client() -> None:
    assert len(MESSAGES) >= 4


@pytest.mark.parametrize("data", [RAW, WIRE], ids=["raw", "wire"])
def test_both_encodings_are_valid_and_no_bit_may_differ(data: bytes) -> None:
    assert valid(text(data))
    for position in range(len(data) * 8):
        flipped = bytearray(data)
        flipped[position // 8] ^= 1 << position % 8
        assert not valid(text(flipped)), f"bit {position}"


@pytest.mark.parametrize("data", [RAW, WIRE], ids=["raw", "wire"])
def test_no_bit_of_the_text_may_differ_either(data: bytes) -> None:
    """Some bits of base64 mean nothing, and are to be 0."""
    good = text(data)
    for place, letter in enumerate(good):
        for bit in range(8):
            assert not valid(good[:place] + chr(ord(letter) ^ 1 << bit) + good[place + 1 :]), f"{place}: bit {bit}"


@pytest.mark.parametrize(
    "signature",
    [
        "",
        "=",
        text(b""),
        text(RAW[:-1]),
        text(RAW + b"\0"),
        text(WIRE_HEAD),
        text(WIRE + b"\0"),
        text(WIRE_HEAD + WIRE),
        text(RAW).rstrip("="),
        text(RAW) + "\n",
        " " + text(RAW),
        text(RAW).replace("/", "_"),
        "é" * 88,
        "\ud800",
        text(
            RAW[:32]
            + (int.from_bytes(RAW[32:], "little") + 2**252 + 27742317777372353535851937790883648493).to_bytes(
                32, "little"
            )
        ),
    ],
)
def test_anything_else_is_no_signature(signature: str) -> None:
    assert not valid(signature)


def test_a_signature_is_of_one_payload() -> None:
    assert not valid(HELLO["signature"], HELLO["payload"].encode() + b"\n")
    assert not valid(MESSAGES[0]["signature"])


def test_what_we_sign_is_valid_for_the_owner_of_the_public_key_alone() -> None:
    signer = read_signer((KEYS / "studioml_signing").read_bytes(), None)
    assert signer.fingerprint == HELLO["fingerprint"]
    assert signer.sign(HELLO["payload"].encode()) == HELLO["signature"]  # Ed25519 leaves nothing to chance
    assert not valid(text(new_private_key().sign(HELLO["payload"].encode())))


# Keys


@pytest.mark.parametrize("line", [PUBLIC, PUBLIC.strip(), "\n" + PUBLIC + "\n", " ".join(PUBLIC.split()[:2])])
def test_a_key_is_one_line(line: str) -> None:
    assert read_verifier(line).fingerprint == HELLO["fingerprint"]


@pytest.mark.parametrize(
    ("line", "told"),
    [
        ("", "one line"),
        (PUBLIC + PUBLIC, "there are 2"),
        (PUBLIC[:60], "cannot be read"),
        ("ssh-ed25519", "cannot be read"),
        ("ssh-ed25519 !!!", "cannot be read"),
        ("\ud800", "cannot be read"),
        ((KEYS / "studioml_request.pub").read_text(), "is not one of Ed25519"),
    ],
)
def test_a_bad_public_key_is_told_in_a_sentence(line: str, told: str) -> None:
    with pytest.raises(ConfigError, match=r"^the public key ") as caught:
        read_verifier(line)
    assert told in str(caught.value)


def test_half_a_key_is_none() -> None:
    """A file may be read while it is written."""
    blob = len(" ".join(PUBLIC.split()[:2]))
    for length in range(blob):
        with pytest.raises(ConfigError):
            read_verifier(PUBLIC[:length])


@pytest.mark.skipif(not which("ssh-keygen"), reason="there is no ssh-keygen")
@pytest.mark.parametrize("name", ["studioml_signing.pub", "studioml_request.pub"])
def test_fingerprints_are_those_of_ssh_keygen(name: str) -> None:
    told = subprocess.run(["ssh-keygen", "-l", "-E", "sha256", "-f", KEYS / name], capture_output=True, check=True)
    assert told.stdout.decode().split()[1] == fingerprint_of(load_ssh_public_key((KEYS / name).read_bytes()))  # type: ignore[arg-type]


def test_a_signing_key_may_have_a_passphrase_and_must_be_one_of_ed25519() -> None:
    with pytest.raises(ConfigError, match="is not one of Ed25519"):
        read_signer((KEYS / "studioml_request.pem").read_bytes(), b"PassPhrase")
    with pytest.raises(ConfigError, match="the private key cannot be read"):
        read_signer(b"", None)
