"""Envelopes: real ones open, forged ones are refused before anything is decrypted, and nothing breaks the reader."""

from __future__ import annotations

import copy
import json
import random
import shutil
import time
import tracemalloc
from base64 import b64decode, b64encode
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from runner.crypto.keys import KeyDirectory
from runner.crypto.private_keys import PrivateKeys
from runner.crypto.sealing import Sealer, open_sealed, read_private_key, read_public_key
from runner.crypto.signing import Signer, new_private_key, read_signer
from runner.errors import MachineError, RequestError
from runner.message import envelope, request
from runner.message.envelope import Envelopes
from runner.options.settings import Settings
from runner.supervisor import intake
from tests.loops import Clock

VECTORS = Path(__file__).resolve().parent / "vectors"
KEYS = VECTORS / "keys"
SEALED = sorted(path for path in VECTORS.glob("enc_*.json") if path.name.count(".") == 1)
HELLO: dict[str, Any] = json.loads((VECTORS / "enc_hello.json").read_text())
QUEUE = "rmq_cl_sm5"
REFUSED = pytest.raises(RequestError)


class Place:
    """A runner's directories of keys: those of the real client, if nothing else is said."""

    def __init__(self, root: Path) -> None:
        self.clock = Clock(0.0)
        self.signers, self.keys = root / "signing", root / "message"
        for directory in (self.signers, self.keys / "encryption", self.keys / "passphrase"):
            directory.mkdir(parents=True)
        shutil.copy(KEYS / "studioml_signing.pub", self.signers / "rmq_")
        shutil.copy(KEYS / "studioml_request.pem", self.keys / "encryption" / "ssh-privatekey")
        (self.keys / "passphrase" / "ssh-passphrase").write_text("PassPhrase\n")
        self.envelopes = self.fresh()

    def fresh(self) -> Envelopes:
        return Envelopes(KeyDirectory(self.signers, clock=self.clock), PrivateKeys(self.keys, clock=self.clock))

    def open(self, document: object, queue: str = QUEUE) -> bytes:
        return self.envelopes.open(envelope.read(document), queue)


@pytest.fixture
def place(tmp_path: Path) -> Place:
    return Place(tmp_path)


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Place:
    """One for tests that change nothing in it."""
    return Place(tmp_path_factory.mktemp("whole"))


@pytest.fixture(scope="module")
def keyless(tmp_path_factory: pytest.TempPathFactory) -> Place:
    """One that can check signatures and decrypt nothing: whatever it refuses was refused before that."""
    made = Place(tmp_path_factory.mktemp("keyless"))
    shutil.rmtree(made.keys)
    return made


def changed(**members: Any) -> dict[str, Any]:
    document = copy.deepcopy(HELLO)
    document["message"].update(members)
    return document


def signed(document: dict[str, Any], signer: Signer | None = None) -> dict[str, Any]:
    """Encrypt for the real client's runner, and sign as the real client."""
    signer = signer or read_signer((KEYS / "studioml_signing").read_bytes(), None)
    return envelope.made(document, read_public_key((KEYS / "studioml_request.pub.pem").read_text()), signer)


def signed_payload(payload: bytes) -> dict[str, Any]:
    signer = read_signer((KEYS / "studioml_signing").read_bytes(), None)
    return changed(payload=payload.decode("latin-1"), signature=signer.sign(payload))


@pytest.mark.parametrize("path", SEALED, ids=lambda path: path.stem)
def test_every_message_of_the_real_client_opens(path: Path, whole: Place) -> None:
    inside = json.loads(whole.open(json.loads(path.read_text())))
    expected = json.loads(path.with_suffix(".expect.json").read_text())
    experiment, artifacts = expected["experiment"], expected["artifacts"]
    assert {name: inside["experiment"][name] for name in experiment} == experiment
    assert sorted(inside["config"]) == expected["config_keys"]
    wanted = request.from_document(inside)
    assert wanted.key == experiment["key"]
    assert {label: (each.location.bucket, each.location.key) for label, each in wanted.artifacts.items()} == {
        label: (each["bucket"], each["key"]) for label, each in artifacts.items()
    }
    assert {label: (each.mutable, each.unpack) for label, each in wanted.artifacts.items()} == {
        label: (each["mutable"], each["unpack"]) for label, each in artifacts.items()
    }


def test_the_hints_decide_nothing(whole: Place) -> None:
    document = changed(experiment="x", time_added=[], resources_needed=None, experiment_lifetime={})
    assert json.loads(whole.open(document)) == json.loads(whole.open(HELLO))


def test_what_we_make_is_what_clients_make(whole: Place) -> None:
    inside = json.loads(whole.open(HELLO))
    made = signed(inside)
    assert set(made["message"]) == set(HELLO["message"])
    assert {name: type(value) for name, value in made["message"].items()} == {
        name: type(value) for name, value in HELLO["message"].items()
    }
    assert json.loads(whole.open(made)) == inside


# Forgeries


def flips(text: str, places: range | list[int], bits: range | list[int] = range(8)) -> Iterator[str]:
    for place in places:
        for bit in bits:
            yield text[:place] + chr(ord(text[place]) ^ 1 << bit) + text[place + 1 :]


def test_no_bit_of_an_envelope_may_differ(keyless: Place) -> None:
    """All bits of signature, fingerprint, key and nonce; some of the body. None gets as far as to be decrypted."""
    with pytest.raises(MachineError, match="there is no encryption/ssh-privatekey"):
        keyless.open(HELLO)
    members = HELLO["message"]
    payload = members["payload"]
    head = payload.index(",") + 1 + 32  # the nonce's 24 bytes are 32 letters
    body = random.Random(0).sample(range(head, len(payload)), 100)
    tried = 0
    for name, places in {
        "signature": range(len(members["signature"])),
        "fingerprint": range(len(members["fingerprint"])),
        "payload": [*range(head), *body],
    }.items():
        for bad in flips(members[name], places):
            tried += 1
            with REFUSED:
                keyless.open(changed(**{name: bad}))
    assert tried > 7000


def test_decryption_by_itself_tells_when_a_bit_differs() -> None:
    """Even if somebody had the signing key: some bits of the session key, all of the nonce, some of the body."""
    key = read_private_key((KEYS / "studioml_request.pem").read_bytes(), b"PassPhrase")
    head, box = (b64decode(part) for part in HELLO["message"]["payload"].split(","))
    chance = random.Random(0)
    for data, bits in (
        (head, chance.sample(range(4096), 40)),
        (box, [*range(192), *chance.sample(range(192, 8000), 40)]),
    ):
        for bit in bits:
            bad = bytearray(data)
            bad[bit // 8] ^= 1 << bit % 8
            parts = (bad, box) if data is head else (head, bad)
            with REFUSED:
                open_sealed(b",".join(map(b64encode, parts)), key)


@pytest.mark.parametrize("name", ["signature", "fingerprint", "payload"])
@pytest.mark.parametrize("value", [None, "", 7, True, [], {}, "\0", "\ud800", "é", "AAAA", "," * 1000])
def test_an_envelope_that_lacks_something_is_refused(name: str, value: Any, keyless: Place) -> None:
    document = changed(**{name: value})
    assert request.is_envelope(document)
    with REFUSED:
        keyless.open(document)


def test_an_envelope_without_a_signature_says_all_that_it_lacks(keyless: Place) -> None:
    with pytest.raises(RequestError) as caught:
        keyless.open({"message": {"payload": HELLO["message"]["payload"]}})
    assert caught.value.faults == ("message.fingerprint: is missing", "message.signature: is missing")


def test_only_the_key_of_the_longest_beginning_counts(keyless: Place, place: Place) -> None:
    stranger = Signer(new_private_key())
    inside = {"experiment": {"status": "", "pythonver": "3", "time_added": 1, "resources_needed": {}}}
    forged = signed({**inside, "config": {"experimentLifetime": None}}, stranger)
    with pytest.raises(
        RequestError, match=r"is signed with the key 'SHA256:.*', but that of queue rmq_cl_sm5 is SHA256:"
    ):
        keyless.open(forged)
    forged["message"]["fingerprint"] = HELLO["message"]["fingerprint"]
    with pytest.raises(RequestError, match="signature is not valid"):
        keyless.open(forged)
    with pytest.raises(RequestError, match=r"no key in .* is for queue sqs_x"):
        keyless.open(HELLO, "sqs_x")
    (place.signers / "rmq_cl").write_text((KEYS / "studioml_request.pub").read_text())
    (place.signers / "info").write_text("placeholder")
    place.open(HELLO, "rmq_other")
    with pytest.raises(MachineError, match="rmq_cl: the public key is not one of Ed25519"):
        place.open(HELLO)


# Keys that come and go


def test_a_signers_key_counts_from_the_message_on_that_needs_it_and_goes_within_ten_seconds(place: Place) -> None:
    (place.signers / "rmq_").rename(place.signers / ".rmq_")
    with pytest.raises(RequestError, match="no key in"):
        place.open(HELLO)
    (place.signers / ".rmq_").rename(place.signers / "rmq_")
    place.clock.now = 1.5
    place.open(HELLO)
    (place.signers / "rmq_").unlink()
    place.clock.now += 10
    with pytest.raises(RequestError, match="no key in"):
        place.open(HELLO)


def test_a_secret_that_kubernetes_replaces_takes_effect(place: Place) -> None:
    (place.signers / "rmq_").unlink()
    for version, name in (("one", "studioml_request.pub"), ("two", "studioml_signing.pub")):
        (place.signers / f"..{version}").mkdir()
        shutil.copy(KEYS / name, place.signers / f"..{version}" / "rmq_")
    (place.signers / "..data").symlink_to("..one")
    (place.signers / "rmq_").symlink_to("..data/rmq_")
    with pytest.raises(MachineError, match="is not one of Ed25519"):
        place.open(HELLO)
    (place.signers / "..new").symlink_to("..two")
    (place.signers / "..new").replace(place.signers / "..data")
    place.clock.now = 10
    place.open(HELLO)


def test_a_key_that_is_half_written_loses_no_message(place: Place) -> None:
    text = (place.signers / "rmq_").read_text()
    for half in ("", text[:40]):
        (place.signers / "rmq_").write_text(half)
        place.clock.now += 10
        with pytest.raises(MachineError, match="rmq_: the public key"):
            place.open(HELLO)
    (place.signers / "rmq_").write_text(text)
    place.clock.now += 1.5
    place.open(HELLO)


def test_without_a_directory_of_signers_a_message_is_for_another_runner(place: Place) -> None:
    shutil.rmtree(place.signers)
    with pytest.raises(MachineError, match="are not there"):
        place.open(HELLO)


# Whatever comes


@pytest.mark.parametrize(
    "payload",
    [
        b"",
        b",",
        b"AAAA,AAAA",
        b"AAAA,",
        b64encode(bytes(512)) + b"," + b64encode(bytes(39)),
        b64encode(bytes(512)) + b"," + b64encode(bytes(100)),
        b64encode(b"\xff" * 512) + b"," + b64encode(bytes(100)),
        b64encode(bytes(100_000)) + b"," + b64encode(bytes(100)),
        b"," * 1000,
        b"\xff" * 100,
    ],
)
def test_signed_nonsense_is_refused(payload: bytes, whole: Place) -> None:
    with REFUSED:
        whole.open(signed_payload(payload))


class Message:
    """As much of a delivery as intake looks at."""

    def __init__(self, body: bytes, queue: str = QUEUE) -> None:
        self.body, self.queue = body, queue


def received(body: bytes, place: Place) -> intake.Received:
    return intake.read(Message(body), place.envelopes, Settings(queue_root="/"))  # type: ignore[arg-type]


def sealed(body: bytes) -> bytes:
    payload = Sealer(read_public_key((KEYS / "studioml_request.pub.pem").read_text())).seal(body)
    return json.dumps(signed_payload(payload)).encode()


def test_a_clear_message_is_no_signed_one_even_where_it_may_run(whole: Place) -> None:
    body = whole.open(HELLO)
    allowed = Settings(queue_root="/", clear_text_messages=True)
    assert intake.read(Message(body), whole.envelopes, allowed).name == ""  # type: ignore[arg-type]
    with pytest.raises(RequestError, match="signature is not valid"):
        forged = json.dumps(changed(signature=HELLO["message"]["signature"][::-1])).encode()
        intake.read(Message(forged), whole.envelopes, allowed)  # type: ignore[arg-type]


def test_a_message_comes_in_by_its_envelope_or_not_at_all(whole: Place) -> None:
    inside = whole.open(HELLO)
    assert received(json.dumps(HELLO).encode(), whole).name == envelope.read(HELLO).name
    with pytest.raises(RequestError, match="is not encrypted, and --clear-text-messages is not set"):
        received(inside, whole)


def test_a_copy_is_known_by_what_was_signed_and_by_nothing_that_anybody_may_change(whole: Place) -> None:
    raw = b64decode(HELLO["message"]["signature"])[-64:]
    wire = b"\0\0\0\x0bssh-ed25519\0\0\0\x40" + raw
    names = {
        received(json.dumps(changed(signature=b64encode(form).decode(), time_added=added)).encode(), whole).name
        for form in (raw, wire)
        for added in (1.0, 2.0)
    }
    assert names == {envelope.read(HELLO).name}
    assert envelope.read(changed(payload="A")).name not in names


@pytest.mark.parametrize("body", [b"", b"no JSON", b"\xff", b"[]", b'{"experiment": {}}', json.dumps(HELLO).encode()])
def test_what_is_inside_is_checked_like_any_message(body: bytes, whole: Place) -> None:
    """An envelope in an envelope is none that has been asked for."""
    with REFUSED:
        received(sealed(body), whole)


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(max_size=40),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=10), inner, max_size=4),
    max_leaves=15,
)
NAMES = st.sampled_from(["payload", "signature", "fingerprint", "experiment", "resources_needed", "x"])
BASE64 = st.binary(max_size=700).map(lambda data: b64encode(data).decode())
PAYLOADS = st.tuples(BASE64, BASE64).map(",".join)
REAL = st.sampled_from(["payload", "signature", "fingerprint"]).map(lambda name: HELLO["message"][name])
ENVELOPES = st.fixed_dictionaries({"payload": JSON | PAYLOADS | REAL}).flatmap(
    lambda least: st.dictionaries(NAMES, JSON | BASE64 | REAL, max_size=5).map(lambda more: {**more, **least})
)
QUICK = settings(max_examples=150, deadline=None, database=None, derandomize=True)


@QUICK
@given(message=ENVELOPES)
def test_the_reader_of_envelopes_says_no_and_nothing_else(message: dict[str, Any], whole: Place) -> None:
    if all(message.get(name) == HELLO["message"][name] for name in ("payload", "signature", "fingerprint")):
        return
    with REFUSED as caught:
        received(json.dumps({"message": message}).encode(), whole)
    assert all(told.isprintable() and len(told) < 1000 for told in caught.value.faults)


@settings(QUICK, max_examples=40, suppress_health_check=[HealthCheck.too_slow])
@given(payload=PAYLOADS | st.text(alphabet="A+/=,", max_size=60))
def test_a_signed_payload_says_no_and_nothing_else(payload: str, whole: Place) -> None:
    with REFUSED:
        received(json.dumps(signed_payload(payload.encode())).encode(), whole)


MANY = 15 * 1024 * 1024
HUGE = {
    "a payload of one letter": changed(payload="A" * MANY),
    "a payload of commas": changed(payload="," * MANY),
    "a payload of padding": changed(payload="=" * MANY),
    "a long signature": changed(signature="A" * MANY),
    "a long fingerprint": changed(fingerprint="é" * (MANY // 6)),
    "a list of payloads": changed(payload=["A"] * (MANY // 6)),
    "many members": {"message": {"payload": "A", **{str(number): 0 for number in range(MANY // 30)}}},
    "a session key of megabytes": signed_payload(b"AAAA" * (MANY // 8) + b"," + b"AAAA" * (MANY // 8)),
    "deep in a hint": changed(resources_needed=json.loads("[" * 900 + "]" * 900)),
}


@pytest.mark.parametrize("name", HUGE)
def test_large_envelopes_cost_little_time_and_memory(name: str, whole: Place) -> None:
    body = json.dumps(HUGE[name]).encode()
    tracemalloc.start()
    try:
        began = time.process_time()
        with REFUSED:
            received(body, whole)
        took, (_, peak) = time.process_time() - began, tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert took < 10
    assert peak < 12 * MANY
