"""The forms in which a secret appears in what programs write: plain, URL-encoded, base64-encoded, escaped, by lines."""

from __future__ import annotations

import html
import json
import re
from base64 import b64encode, urlsafe_b64encode
from collections.abc import Iterable, Iterator
from urllib.parse import quote, quote_plus

# In bytes: what is shorter is found in too many innocent words to be masked there.
_SHORTEST = 6
# A longer secret is found by its pieces. In bytes.
_LONGEST = 512
# What is left as it is where URLs are encoded: nothing, or what may be in paths, by JavaScript's encodeURIComponent, in
# users and passwords, or anywhere.
_SAFE = ("", "/", "!'()*", "!$&'()*+,;=:", "!$&'()*+,/:;=?@")
# What stands where secrets do, and is none: what tokens need for a user, and what everybody knows.
_KNOWN_TO_ALL = {
    *("x-access-token", "x-token-auth", "x-oauth-basic", "oauth2", "__token__", "gitlab-ci-token"),
    *("anonymous", "default", "password", "studioml", "studio-runner"),
}


def forms_of(secrets: Iterable[str]) -> list[bytes]:
    """Return all that has to be looked for so that these are found, the longest first."""
    found = {form for secret in secrets for piece in _pieces(secret) for form in _forms(piece)}
    return sorted(found, key=lambda form: (-len(form), form))


def _pieces(secret: str) -> Iterator[str]:
    """A secret by its lines, for that is how output is looked at; a key's first and last lines are none."""
    for line in secret.splitlines():
        line = line.strip()  # noqa: PLW2901
        if line.startswith("-----") or line.lower() in _KNOWN_TO_ALL:
            continue
        for start in range(0, len(line), _LONGEST):
            piece = line[start : start + _LONGEST]
            if len(piece.encode(errors="replace")) >= _SHORTEST:
                yield piece


def _forms(text: str) -> set[bytes]:
    data = text.encode(errors="surrogatepass")
    encoded = {quote_plus(data), *(quote(data, safe=safe) for safe in _SAFE)}
    encoded |= {quote(quote(data, safe=""), safe="")}
    encoded |= {re.sub("%..", lambda match: match[0].lower(), each) for each in encoded}
    found = encoded | set(_escaped(text))
    return {data, *(each.encode(errors="surrogatepass") for each in found), *_in_base64(data)}


def _escaped(text: str) -> Iterator[str]:
    """Yield it as it stands in JSON, once and twice, in Python's, HTML's and the shell's words."""
    for ascii_only in (True, False):
        plain = json.dumps(text, ensure_ascii=ascii_only)[1:-1]
        yield from (plain, json.dumps(plain, ensure_ascii=ascii_only)[1:-1], plain.replace("/", "\\/"))
        yield "".join(f"\\u{ord(each):04x}" if each in "<>&" else each for each in plain)  # Go's, for HTML
    for literal in (repr(text)[1:-1], repr(text.encode(errors="surrogatepass"))[2:-1]):
        yield from (literal, literal.replace("\\'", "'").replace("'", "\\'"))
    escaped = html.escape(text)
    yield from (escaped, html.escape(text, quote=False))
    yield escaped.replace("&quot;", "&#34;").replace("&#x27;", "&#39;")
    yield from (text.replace("'", quoted) for quoted in ("'\\''", "'\"'\"'"))


def _in_base64(data: bytes) -> Iterator[bytes]:
    """Yield what of the base64 of anything with ``data`` in it depends on nothing else, wherever it begins."""
    for before in range(3):
        padded = bytes(before) + data
        first, end = -(-before * 8 // 6), len(padded) * 8 // 6
        for encode in (b64encode, urlsafe_b64encode):
            yield encode(padded)[first:end]
