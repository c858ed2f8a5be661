"""The keys that open messages: in every form, several at once, and exchanged while the runner works."""

from __future__ import annotations

import logging
from pathlib import Path

import pytest
from cryptography.hazmat.primitives.asymmetric import rsa
from cryptography.hazmat.primitives.serialization import BestAvailableEncryption, Encoding, NoEncryption, PrivateFormat

from runner.crypto.private_keys import PrivateKeys
from runner.crypto.sealing import Sealer
from runner.errors import ConfigError, MachineError, RequestError

OLD, NEW, OTHER = (rsa.generate_private_key(65537, 2048) for _ in range(3))


class Place(PrivateKeys):
    """A directory of keys, and a clock to look at it again."""

    def __init__(self, root: Path) -> None:
        self.now, self.root = 0.0, root
        for name in ("encryption", "passphrase"):
            (root / name).mkdir()
        super().__init__(root, clock=lambda: self.now)

    def put(
        self, key: rsa.RSAPrivateKey, name: str = "", passphrase: str = "", form: str = "TraditionalOpenSSL"
    ) -> None:
        protection = BestAvailableEncryption(passphrase.encode()) if passphrase else NoEncryption()
        data = key.private_bytes(Encoding.PEM, getattr(PrivateFormat, form), protection)
        (self.root / "encryption" / f"ssh-privatekey{name}").write_bytes(data)

    def passphrase(self, text: str, name: str = "") -> None:
        (self.root / "passphrase" / f"ssh-passphrase{name}").write_text(text)

    def opens(self, key: rsa.RSAPrivateKey) -> bool:
        return self.open(Sealer(key.public_key()).seal(b"body")) == b"body"


@pytest.fixture
def place(tmp_path: Path) -> Place:
    return Place(tmp_path)


@pytest.mark.parametrize(
    ("form", "line"), [("TraditionalOpenSSL", "secret"), ("PKCS8", "secret\n"), ("OpenSSH", "secret\r\n")]
)
def test_a_key_in_any_form_has_its_passphrase_in_a_file_of_its_own(place: Place, form: str, line: str) -> None:
    place.put(NEW, passphrase="secret", form=form)
    place.passphrase(line)
    assert place.check() == 1
    assert place.opens(NEW)


def test_an_old_key_opens_old_messages_beside_a_new_one(place: Place) -> None:
    place.put(NEW, passphrase="new")
    place.passphrase("new")
    place.put(OLD, "-old", passphrase="old")
    place.passphrase("old", "-old")
    place.put(OTHER, ".2019", passphrase="new")
    (place.root / "encryption" / "ssh-publickey").write_text("not looked at")
    assert place.check() == 3
    assert place.opens(NEW)
    assert place.opens(OLD)
    assert place.opens(OTHER)


def test_keys_come_and_go_while_the_runner_works(place: Place) -> None:
    place.put(OLD)
    assert place.opens(OLD)
    place.put(NEW, "-new")
    place.now = 1.5
    assert place.opens(NEW)  # at the first message that needs it
    (place.root / "encryption" / "ssh-privatekey").unlink()
    place.now += 10
    with pytest.raises(RequestError, match="for another key"):
        place.opens(OLD)
    assert place.opens(NEW)


def test_what_is_for_nobody_here_is_refused_and_what_may_be_ours_is_not(
    place: Place, caplog: pytest.LogCaptureFixture
) -> None:
    with pytest.raises(MachineError, match="there is no encryption/ssh-privatekey in"):
        place.opens(NEW)
    place.put(OLD)
    place.now = 10
    with pytest.raises(RequestError, match="is encrypted for another key than those in"):
        place.opens(NEW)
    place.put(NEW, "-new", passphrase="secret")
    with caplog.at_level(logging.ERROR):
        for place.now in (20, 30, 40):
            with pytest.raises(MachineError, match="ssh-privatekey-new: the private key is protected by a passphrase"):
                place.opens(NEW)
    assert [record.levelno for record in caplog.records].count(logging.ERROR) == 1
    place.passphrase("secret", "-new")
    place.now = 50
    assert place.opens(NEW)
    with pytest.raises(RequestError, match="is encrypted for another key than those in"):
        place.opens(OTHER)


@pytest.mark.parametrize("payload", [b"", b",", b"AAAA,AAAA", b"no base64"])
def test_what_is_no_sealed_message_is_refused_whatever_keys_there_are(place: Place, payload: bytes) -> None:
    with pytest.raises(RequestError, match="cannot be decrypted"):
        place.open(payload)


def test_a_start_without_any_usable_key_is_a_mistake_and_one_without_keys_is_none(
    place: Place, caplog: pytest.LogCaptureFixture
) -> None:
    assert place.check() == 0
    place.put(OLD, passphrase="secret")
    (place.root / "encryption" / "ssh-privatekey-2").mkdir()
    place.now = 10
    with pytest.raises(ConfigError) as caught:
        place.check()
    assert len(caught.value.faults) == 2
    assert not set(caught.value.faults) & set(caplog.messages), "who gets the mistake tells it"
    place.put(NEW, "-3")
    place.now = 20
    assert place.check() == 1
    assert set(caught.value.faults) <= set(caplog.messages)


def test_a_key_that_is_half_written_is_read_when_it_is_whole(place: Place) -> None:
    place.put(OLD)
    path = place.root / "encryption" / "ssh-privatekey"
    whole = path.read_bytes()
    path.write_bytes(whole[: len(whole) // 2])
    with pytest.raises(MachineError, match="cannot be read"):
        place.opens(OLD)
    path.write_bytes(whole)
    place.now = 1.5
    assert place.opens(OLD)
