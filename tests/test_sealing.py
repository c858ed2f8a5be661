"""Sealed messages: those of the real client are opened, ours are opened by nobody else, and bad ones tell nothing."""

from __future__ import annotations

import json
from base64 import b64decode, b64encode
from pathlib import Path
from typing import Any

import pytest
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec, rsa

from runner.crypto.sealing import Sealer, open_sealed, read_private_key, read_public_key
from runner.errors import ConfigError, RequestError

VECTORS = Path(__file__).resolve().parent / "vectors"
KEYS = VECTORS / "keys"
PASSPHRASE = b"PassPhrase"
PEM = serialization.Encoding.PEM
NO_PASSPHRASE = serialization.NoEncryption()


@pytest.fixture(scope="module")
def private() -> rsa.RSAPrivateKey:
    return read_private_key((KEYS / "studioml_request.pem").read_bytes(), PASSPHRASE)


@pytest.fixture(scope="module")
def public() -> rsa.RSAPublicKey:
    return read_public_key((KEYS / "studioml_request.pub.pem").read_text())


def payload(name: str) -> str:
    return str(json.loads((VECTORS / f"{name}.json").read_text())["message"]["payload"])


SEALED = sorted(path.name.removesuffix(".expect.json") for path in VECTORS.glob("enc_*.expect.json"))


@pytest.mark.parametrize("name", SEALED)
def test_what_the_real_client_sealed_is_opened(name: str, private: rsa.RSAPrivateKey) -> None:
    expected = json.loads((VECTORS / f"{name}.expect.json").read_text())
    experiment: dict[str, Any] = json.loads(open_sealed(payload(name), private))["experiment"]
    for member, value in expected["experiment"].items():
        assert experiment[member] == value
    assert set(experiment["artifacts"]) == set(expected["artifacts"])


def test_there_are_messages_of_the_real_client() -> None:
    assert len(SEALED) >= 4


@pytest.mark.parametrize("body", [b"", b"x", "Zürich ".encode() * 100_000])
def test_what_is_sealed_is_opened_by_the_owner_of_the_key(
    body: bytes, public: rsa.RSAPublicKey, private: rsa.RSAPrivateKey
) -> None:
    sealed = Sealer(public).seal(body)
    assert open_sealed(sealed, private) == body
    assert open_sealed(sealed.decode() + "\n", private) == body


def test_a_sealed_message_has_the_form_that_the_client_knows(public: rsa.RSAPublicKey) -> None:
    key, box = (b64decode(part, validate=True) for part in Sealer(public).seal(b"body").split(b","))
    assert (len(key), len(box)) == (512, 24 + 16 + 4)


def test_a_sealer_keeps_its_session_key_and_never_repeats_a_nonce(public: rsa.RSAPublicKey) -> None:
    sealer = Sealer(public)
    parts = [sealer.seal(b"the same").split(b",") for _ in range(100)]
    assert len({head for head, _ in parts}) == 1
    assert len({b64decode(rest)[:24] for _, rest in parts}) == 100
    assert Sealer(public).seal(b"").split(b",")[0] != parts[0][0]


def broken(good: str) -> list[str]:
    """What a message may become on its way, or in the hands of a forger."""
    key, _, box = good.partition(",")
    raw_key, raw_box = bytearray(b64decode(key)), bytearray(b64decode(box))
    raw_key[5] ^= 1
    raw_box[30] ^= 1
    return [
        "",
        ",",
        key,
        f"{key},",
        f",{box}",
        f"{key},{box},{box}",
        f"{key}{box}",
        f"{box},{key}",
        f"{key},{box[:-4]}",
        f"{key[:-4]},{box}",
        f"{b64encode(raw_key).decode()},{box}",
        f"{key},{b64encode(raw_box).decode()}",
        f"{key},{b64encode(b64decode(box)[:24]).decode()}",
        f"{key},!{box}",
        f"{key},é{box}",
        f"{key},\ud800{box}",
    ]


def test_all_that_cannot_be_opened_is_refused_in_the_same_words(private: rsa.RSAPrivateKey) -> None:
    told = set()
    for bad in broken(payload("enc_hello")):
        with pytest.raises(RequestError) as caught:
            open_sealed(bad, private)
        told.add(str(caught.value))
    assert told == {"the message cannot be decrypted"}


def test_another_key_does_not_open_it() -> None:
    stranger = rsa.generate_private_key(65537, 2048)
    with pytest.raises(RequestError):
        open_sealed(payload("enc_hello"), stranger)


# Keys


def test_a_private_key_is_read_in_every_form(public: rsa.RSAPublicKey) -> None:
    ours = rsa.generate_private_key(65537, 2048)
    forms = serialization.PrivateFormat
    protected = serialization.BestAvailableEncryption(b"secret")
    sealed = Sealer(ours.public_key()).seal(b"body")
    for form in (forms.PKCS8, forms.TraditionalOpenSSL, forms.OpenSSH):
        plain = ours.private_bytes(PEM, form, NO_PASSPHRASE)
        assert open_sealed(sealed, read_private_key(plain, None)) == b"body"
        assert open_sealed(sealed, read_private_key(plain, b"not needed")) == b"body"
        assert open_sealed(sealed, read_private_key(ours.private_bytes(PEM, form, protected), b"secret")) == b"body"
    openssh = read_private_key((KEYS / "studioml_request").read_bytes(), PASSPHRASE)
    assert openssh.public_key().public_numbers() == public.public_numbers()


def test_a_public_key_is_read_in_both_forms(public: rsa.RSAPublicKey) -> None:
    text = public.public_bytes(PEM, serialization.PublicFormat.SubjectPublicKeyInfo).decode()
    assert "BEGIN PUBLIC KEY" in text
    assert read_public_key(text).public_numbers() == public.public_numbers()


PLAIN_EC = ec.generate_private_key(ec.SECP256R1())
SHORT = rsa.generate_private_key(65537, 1024)
PKCS8 = serialization.PrivateFormat.PKCS8


@pytest.mark.parametrize(
    ("data", "passphrase", "told"),
    [
        ((KEYS / "studioml_request.pem").read_bytes(), None, "is protected by a passphrase, and none is given"),
        ((KEYS / "studioml_request.pem").read_bytes(), b"", "is protected by a passphrase, and none is given"),
        ((KEYS / "studioml_request.pem").read_bytes(), b"wrong", "another passphrase"),
        ((KEYS / "studioml_request").read_bytes(), None, "is protected by a passphrase, and none is given"),
        ((KEYS / "studioml_request").read_bytes(), b"wrong", "another passphrase"),
        ((KEYS / "studioml_request.pem").read_bytes()[:400], PASSPHRASE, "cannot be read"),
        ((KEYS / "studioml_request.pub.pem").read_bytes(), None, "cannot be read"),
        (b"", None, "cannot be read"),
        (b"\xff\x00", b"x", "cannot be read"),
        ((KEYS / "studioml_signing").read_bytes(), None, "is not one of RSA"),
        (PLAIN_EC.private_bytes(PEM, PKCS8, NO_PASSPHRASE), None, "is not one of RSA"),
        (SHORT.private_bytes(PEM, PKCS8, NO_PASSPHRASE), None, "has only 1024 bits"),
    ],
)
def test_a_bad_private_key_is_told_in_a_sentence_without_secrets(
    data: bytes, passphrase: bytes | None, told: str
) -> None:
    with pytest.raises(ConfigError) as caught:
        read_private_key(data, passphrase)
    (fault,) = caught.value.faults
    assert fault.startswith("the private key ")
    assert told in fault
    assert not passphrase or passphrase.decode() not in fault.replace("another passphrase", "")


SPKI = serialization.PublicFormat.SubjectPublicKeyInfo


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("", "cannot be read"),
        ("\ud800", "cannot be read"),
        ((KEYS / "studioml_request.pub").read_text(), "cannot be read"),
        (PLAIN_EC.public_key().public_bytes(PEM, SPKI).decode(), "is not one of RSA"),
        (SHORT.public_key().public_bytes(PEM, SPKI).decode(), "has only 1024 bits"),
    ],
)
def test_a_bad_public_key_is_told_in_a_sentence(text: str, told: str) -> None:
    with pytest.raises(ConfigError, match=r"^the public key ") as caught:
        read_public_key(text)
    assert told in str(caught.value)
