"""Secrets in what goes out: found whole or in pieces, plain or encoded, by who knows them and by who does not."""

from __future__ import annotations

import base64
import html
import json
import logging
import random
import re
import time
from itertools import pairwise
from pathlib import Path
from urllib.parse import quote

import pytest

from runner import log
from runner.attempt.console import STDERR, Console
from runner.secrets.forms import forms_of
from runner.secrets.masking import MASK, Search, Secrets, Stream

KEY = "wJalrXUtnFEMI/K7MDENG+bPxRfiCYEXAMPLEKEY"
ODD = 'p"ä\\s&w/0rd'
KNOWN = Secrets.of([KEY, ODD])
RECOGNISED = Secrets.from_fingerprints(json.loads(json.dumps(KNOWN.fingerprints())))


def b64(text: str, before: int = 0, after: int = 0) -> str:
    return base64.b64encode(b"x" * before + text.encode() + b"y" * after).decode()


@pytest.mark.parametrize("secrets", [KNOWN, RECOGNISED], ids=["known", "recognised"])
@pytest.mark.parametrize(
    "shown",
    [
        KEY,
        f"aws_secret_access_key={KEY}\n",
        f"https://me:{quote(KEY, safe='')}@host/",
        f"https://host/?k={quote(KEY)}",
        "https://host/?k=" + re.sub("%..", lambda found: found[0].lower(), quote(KEY, safe="")),
        *(b64(KEY, before, after) for before in range(4) for after in range(3)),
        base64.urlsafe_b64encode(f"user:{KEY}".encode()).decode(),
        json.dumps({"k": ODD}),
        json.dumps({"k": ODD}, ensure_ascii=False),
        repr({"k": ODD}),
        quote(ODD),
        KEY + KEY,
        f"sqs://me:{quote(KEY, safe='+')}@",
        f"https://host/?next={quote(quote(KEY, safe=''), safe='')}",
        json.dumps({"log": json.dumps({"k": ODD})}),
        json.dumps(KEY).replace("/", "\\/"),
        json.dumps(ODD).replace("&", "\\u0026"),
        repr(ODD.encode()),
        repr(f"{ODD} 'quoted'"),
        html.escape(ODD),
    ],
)
def test_a_secret_is_masked_in_all_its_forms(secrets: Secrets, shown: str) -> None:
    masked = secrets.mask_text(shown)
    assert "***" in masked
    # Whatever is left of a form: nobody can read eight characters of the secret from it.
    forms = [
        KEY,
        ODD,
        quote(KEY, safe=""),
        *(b64(KEY, n)[n + 1 :] for n in range(3)),
        *(b64(ODD, n)[n + 1 :] for n in range(3)),
    ]
    assert not any(form[at : at + 8] in masked for form in forms for at in range(len(form) - 8))


def test_what_is_short_or_known_to_all_is_no_secret() -> None:
    secrets = Secrets.of(["a", "", "minio", "studioml", "x-access-token", "-----BEGIN RSA PRIVATE KEY-----"])
    text = "a studioml minio -----BEGIN RSA PRIVATE KEY-----"
    assert secrets.mask_text(text) is text


def test_a_key_of_many_lines_is_masked_line_by_line() -> None:
    lines = [f"{number}abcdefghijklmnopqrstuvwxyz" for number in range(5)]
    secrets = Secrets.of(["\n".join(["-----BEGIN X-----", *lines, "-----END X-----"])])
    assert secrets.mask_text("\r\n".join(lines)) == "\r\n".join(["***"] * 5)


@pytest.mark.parametrize("secrets", [KNOWN, RECOGNISED], ids=["known", "recognised"])
def test_a_secret_is_found_however_it_is_split_over_reads(secrets: Secrets) -> None:
    chance = random.Random(7)
    parts = [KEY, b64(KEY), KEY[:9], ODD, ODD[:3], "\n", "loss 0.1 ", "\r"]
    for _ in range(1000):
        text = "".join(chance.choices(parts, k=7)).encode() + b"\n"
        cuts = [0, *sorted(chance.sample(range(1, len(text)), min(4, len(text) - 1))), len(text)]
        stream = Stream(secrets)
        shown = b"".join(stream.feed(text[start:end]) for start, end in pairwise(cuts))
        assert stream.flush() == b""
        assert re.sub(rb"(\*\*\*)+", MASK, shown) == re.sub(rb"(\*\*\*)+", MASK, secrets.mask(text))


@pytest.mark.parametrize("size", [1, 2, 5, 13])
def test_a_secret_that_waits_for_another_that_seems_to_begin_in_it_stays_masked(size: int) -> None:
    chance = random.Random(size)
    for _ in range(300):
        texts = ["".join(chance.choices("abc", k=chance.randint(6, 30))) for _ in range(4)]
        secrets = Secrets.from_fingerprints(Secrets.of(texts).fingerprints())
        text = " ".join([*chance.choices(texts, k=4), texts[0][2:]]).encode() + b"\n"
        stream = Stream(secrets)
        shown = b"".join(stream.feed(text[start : start + size]) for start in range(0, len(text), size))
        assert re.sub(rb"(\*\*\*)+", MASK, shown) == re.sub(rb"(\*\*\*)+", MASK, secrets.mask(text))


def test_nothing_waits_but_the_beginning_of_a_secret() -> None:
    stream = Stream(KNOWN)
    assert stream.feed(b"Continue? [y/n] ") == b"Continue? [y/n] "
    assert stream.feed(b"\r 50 %") == b"\r 50 %"
    assert stream.feed(f"key {KEY[:10]}".encode()) == b"key "
    assert stream.feed(b"\n") == f"{KEY[:10]}\n".encode()
    assert stream.feed(KEY[:-1].encode()) == b""
    assert stream.flush() == MASK, "half a secret is not shown when its other half never comes"
    assert (stream.feed(KEY[:4].encode()), stream.flush()) == (b"", MASK)
    assert (stream.feed(KEY[:3].encode()), stream.flush()) == (b"", KEY[:3].encode()), "which is none yet"


def test_half_a_secret_is_not_shown_where_its_end_never_comes_whatever_else_seems_to_begin_before_it() -> None:
    stream = Stream(Secrets.of([KEY]) | Secrets.from_fingerprints(Secrets.of(["the runner's own"]).fingerprints()))
    assert stream.feed(f"they have {KEY[:20]}".encode()) + stream.flush() == b"they have ***"


def test_neither_the_log_nor_its_lines_have_a_secret(tmp_path: Path) -> None:
    heard: list[str] = []
    with Console(tmp_path / "output", lambda line, _stream: heard.append(line), secrets=KNOWN) as console:
        console.feed(f"out {KEY[:20]}".encode())
        console.feed(f"err {KEY}\n".encode(), STDERR)
        console.feed(f"{KEY[20:]} put\n".encode())
        console.say(f"it failed: {KEY}")
    assert heard == ["err ***", "out *** put", "studio-runner: it failed: ***"]
    assert (tmp_path / "output").read_text() == "out err ***\n*** put\nstudio-runner: it failed: ***\n"


@pytest.mark.parametrize("style", [log.Style(), log.Style(width=40), log.Style(form="json")], ids=str)
def test_the_runners_log_has_no_secret(capsys: pytest.CaptureFixture[str], style: log.Style) -> None:
    log.start(style)
    log.mask("somebody", Secrets.of([KEY + " " + KEY]))
    logger = logging.getLogger("runner.test")
    try:
        try:
            raise ValueError(f"{KEY} {KEY}")
        except ValueError:
            logger.exception("it failed with %s", f"{KEY} {KEY}")
        log.unmask("somebody")
        logger.warning("nobody minds any more: %s", KEY)
    finally:
        logging.getLogger().handlers.clear()
    told = capsys.readouterr().err
    assert told.count("***") == 2
    assert told.count(KEY[-8:]) == 1


def test_a_fingerprint_does_not_tell_the_secret_and_what_a_message_has_itself_is_not_barred() -> None:
    assert KEY.encode().hex()[:20] not in json.dumps(KNOWN.fingerprints())
    assert not RECOGNISED.without(Secrets.of([KEY, ODD])).within(f"{KEY} {ODD}".encode())
    assert RECOGNISED.without(Secrets.of([ODD])).within(KEY.encode())


def test_a_search_finds_what_is_split_over_chunks() -> None:
    longest = forms_of([KEY, ODD])[0]
    for form in (KEY.encode(), longest):
        data = bytes(1000) + form + bytes(1000)
        for size in (1, 7, 64, 1010):
            search = Search(RECOGNISED)
            found = [search.found(data[start : start + size]) for start in range(0, len(data), size)]
            assert True in found
            assert not search.found(bytes(1000))


def test_many_secrets_are_found_too() -> None:
    chance = random.Random(1)
    many = ["".join(chance.choices("0123456789abcdef", k=40)) for _ in range(500)]
    secrets = Secrets.of(many)
    assert secrets.mask_text(f"a {many[3]} b {b64(many[499])} c") == "a *** b ***A== c"
    began = time.process_time()
    secrets.mask(b"some words of a log line, and numbers: 12345\n" * 5000)
    assert time.process_time() - began < 5  # 0.03 s


def test_text_that_is_made_to_be_slow_is_not() -> None:
    secrets = Secrets.of(["aaaaaaaaaaaaaaab", "abababababababab" * 8])
    began = time.process_time()
    stream = Stream(secrets)
    for _ in range(4):
        stream.feed(b"a" * 32768)
        stream.feed(b"ab" * 16384)
    assert time.process_time() - began < 10
