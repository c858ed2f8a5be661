"""Requests to one bucket of Google Cloud Storage, and what its answers mean.

The protocol: https://cloud.google.com/storage/docs/json_api
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from contextlib import closing
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import quote

from requests import Response

from runner import retry
from runner.errors import RunnerError, Unavailable
from runner.retry import Patience
from runner.storage.base import BearerToken, Denied, Location, NotFound, StoreOptions
from runner.storage.gcs_tokens import Token, identity, parse
from runner.storage.ranges import Changed
from runner.storage.transport import Transport, Trust, passing

ENDPOINT = "https://storage.googleapis.com"


class BeyondEnd(RunnerError):
    """The bytes that are asked for begin after the object's last one."""


class Gone(RunnerError):
    """There is no such upload any more."""


_BUSY = (Unavailable, "{endpoint} is out of order or overloaded: it answered {answer}")
_MEANINGS: dict[str, tuple[type[RunnerError], str]] = {
    "busy": _BUSY,
    "rateLimitExceeded": _BUSY,
    "userRateLimitExceeded": _BUSY,
    "damaged": (Unavailable, "{object} was damaged on its way to {endpoint}"),
    "spoiled": (Gone, "the upload of {object} was damaged on its way to {endpoint}"),
    "object": (NotFound, "the object {object} does not exist"),
    "bucket": (NotFound, "the bucket {bucket!r} does not exist at {endpoint}"),
    "session": (Gone, "the upload of {object} is not known any more"),
    "version": (Changed, "{object} was replaced while it was read"),
    "401": (Denied, "{endpoint} does not accept {who}, which is to {verb} {object}: it is wrong or has expired"),
    "403": (Denied, "{endpoint} does not allow {who} to {verb} {object}"),
    "416": (BeyondEnd, "{object} has fewer bytes than are asked for"),
}
_OTHERWISE = (Denied, "{endpoint} refuses {who} to {verb} {object}: {answer}")


@dataclass(frozen=True)
class Call:
    """One request about one object.

    ``query`` is encoded already. ``place`` is where it goes: ``object``, ``version`` (one of the object's), or
    ``bucket`` and ``session``, which are for uploads.
    """

    method: str
    key: str
    place: str
    query: str
    headers: Mapping[str, str] = field(default_factory=dict)
    body: bytes | memoryview | None = None

    def path(self, bucket: str) -> str:
        """Return the URL below the endpoint."""
        within = f"/storage/v1/b/{encode(bucket)}/o"
        if self.place in ("object", "version"):
            return f"{within}/{encode(self.key)}?{self.query}"
        return f"/upload{within}?{self.query}"

    @property
    def verb(self) -> str:
        """What a person would call it."""
        return "read" if self.method == "GET" else "write"


@dataclass(frozen=True)
class Answer:
    """A good answer that is no object: its headers, and the members of its JSON."""

    status: int
    headers: Mapping[str, str]
    members: Mapping[str, Any]


class Bucket:
    """One bucket, as one identity sees it, over connections that are kept."""

    def __init__(
        self,
        location: Location,
        credentials: BearerToken | None,
        options: StoreOptions,
        *,
        sleep: Callable[[float], None] = time.sleep,
    ) -> None:
        self._location, self._patience, self._sleep = location, options.patience, sleep
        self._identity = identity(credentials, options)
        self._transport = Transport(options.google_endpoint or ENDPOINT, Trust(anywhere=options.link_local))
        if credentials and not (credentials.token.isascii() and credentials.token.isprintable()):
            raise Denied(f"the token for gs://{location.bucket} has impossible characters")

    def ask(self, request: Call, *, patience: Patience | None = None) -> Answer:
        """Send a request whose answer is short, again while patience lasts. Raises what a bad answer means."""
        return retry.call(lambda: self.once(request), patience or self._patience, sleep=self._sleep)

    def once(self, request: Call) -> Answer:
        """Send a request whose answer is short, in one try."""
        with closing(self._exchange(request)) as response:
            return Answer(response.status_code, response.headers, parse(self._transport.text(response)))

    def fetch(self, key: str, bounds: tuple[int, int] | None = None, *, generation: str = "") -> Response:
        """Return an object's answer with its body unread; the caller closes it. It is one try, of one version if asked.

        ``bounds`` are the first byte wanted and the one after the last. Raises Changed when the ``generation`` is gone,
        and BeyondEnd when the object is shorter.
        """
        headers = {"range": f"bytes={bounds[0]}-{bounds[1] - 1}"} if bounds else {}
        if generation:
            return self._exchange(Call("GET", key, "version", f"alt=media&generation={encode(generation)}", headers))
        return self._exchange(Call("GET", key, "object", "alt=media", headers))

    def _exchange(self, request: Call) -> Response:
        """Send a request once, or twice where our token turns out to be good no longer."""
        token = self._identity.token()
        response = self._send(request, token)
        if response.status_code == 401:
            fresh = self._identity.token(refused=token)
            if fresh.text != token.text:
                response.close()
                token, response = fresh, self._send(request, fresh)
        # 308 is no redirection here: an upload has not all of its bytes yet.
        if response.status_code < 300 or (response.status_code == 308 and request.place == "session"):
            return response
        with closing(response):
            members = parse(self._transport.text(response))
        raise self._meaning(response.status_code, members, request, token)

    def _send(self, request: Call, token: Token) -> Response:
        url = self._transport.endpoint + request.path(self._location.bucket)
        own = {"authorization": f"Bearer {token.text}"} if token.text else {}
        return self._transport.send(request.method, url, {**request.headers, **own}, request.body)

    def _meaning(self, status: int, members: Mapping[str, Any], request: Call, token: Token) -> RunnerError:
        """Return the error that an answer is, in words that hold no secret and little of what the endpoint says."""
        reason, message = _told(members)
        error, sentence = _MEANINGS.get(_kind(status, reason, message, request, token)) or _OTHERWISE
        return error(
            sentence.format(
                endpoint=self._transport.endpoint,
                bucket=self._location.bucket,
                object=self._location.sibling(request.key),
                who=token.who,
                verb=request.verb,
                answer=f"{status} {reason}".strip(),
            )
        )


def _told(members: Mapping[str, Any]) -> tuple[str, str]:
    """Return an error's reason, which is one word, and its text."""
    error = members.get("error")
    if not isinstance(error, dict):
        return "", ""
    errors = error.get("errors")
    first = errors[0] if isinstance(errors, list) and errors and isinstance(errors[0], dict) else {}
    reason = "".join(letter for letter in str(first.get("reason", "")) if letter.isascii() and letter.isalnum())
    return reason[:60], str(error.get("message", ""))


def _kind(status: int, reason: str, message: str, request: Call, token: Token) -> str:
    """Return which of the meanings an answer has."""
    if passing(status):
        return "busy"
    if status == 400 and "hash" in message:  # "Provided MD5 hash … doesn't match calculated MD5 hash …"
        return "spoiled" if request.place == "session" else "damaged"
    if status == 401 and not token.text:  # nobody in particular is not allowed to
        return "403"
    if status in (404, 410):
        return "bucket" if "bucket does not exist" in message else request.place
    return reason if status == 403 and reason in _MEANINGS else str(status)


def encode(text: str) -> str:
    """Percent-encode the UTF-8 of ``text``, slashes too."""
    return quote(text, safe="")
