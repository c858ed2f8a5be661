"""Objects at http:// and https:// URLs, which can only be read."""

from __future__ import annotations

import base64
import os
import re
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, closing, contextmanager
from functools import partial
from urllib.parse import quote, urljoin

from requests import Response

from runner import retry
from runner.errors import Unavailable
from runner.storage.base import (
    BasicCredentials,
    BearerToken,
    Denied,
    Location,
    NotFound,
    Stored,
    StoreOptions,
    Writer,
    locate,
)
from runner.storage.ranges import Changed, Part
from runner.storage.transport import Body, Transport, Trust, passing, range_of

_REDIRECTIONS = (301, 302, 303, 307, 308)
_MOST_REDIRECTIONS = 10
_DEFAULT_PORTS = {"http": ":80", "https": ":443"}
# Archives come as they are: some servers call them "encoded", which they are even without a server's doing.
_COMPRESSED = (".gz", ".tgz")

# What RFC 3986 has in paths and queries beside letters and digits.
_LEGAL = "%!$&'()*+,/:;=?@-._~"

_TRUST = "SSL_CERT_FILE in the runner's environment can name the authorities to trust"


class HttpStore:
    """What one host serves to one user. See Store.

    The credentials go to that very host, port and scheme only, wherever it redirects to.
    """

    def __init__(
        self,
        location: Location,
        credentials: BasicCredentials | BearerToken | None,
        options: StoreOptions,
        *,
        sleep: Callable[[float], None] = time.sleep,
    ) -> None:
        self._own, self._patience, self._sleep = location, options.patience, sleep
        self._authorization = {"authorization": _authorization(credentials)} if credentials else {}
        self._link_local = options.link_local
        self._transports: dict[str, Transport] = {}

    @contextmanager
    def open(self, key: str) -> Iterator[Stored]:
        """See Store. A stream goes on where it breaks if the server says exactly what it is and how long."""
        with closing(retry.call(lambda: self._exchange("GET", key), self._patience, sleep=self._sleep)) as response:
            encoded = response.headers.get("content-encoding", "").lower() in ("gzip", "x-gzip")
            decode = encoded and not key.partition("?")[0].lower().endswith(_COMPRESSED)
            body = Body(response, self._name(key), decode=decode)
            etag = _strong(response.headers)
            if not etag or body.size is None:
                yield Stored(body, _version(response.headers), body.size)
                return
            fetch = partial(self._fetch, key, etag, body.size)
            rest = Part(fetch, (0, body.size), patience=self._patience, sleep=self._sleep, body=body)
            with closing(rest):
                yield Stored(rest, _version(response.headers), body.size)

    @contextmanager
    def _fetch(self, key: str, etag: str, size: int, start: int, end: int) -> Iterator[Body]:
        wanted = {"range": f"bytes={start}-{end - 1}", "if-range": etag}
        with closing(self._exchange("GET", key, wanted)) as response:
            same = response.headers.get("etag", etag) == etag  # not all servers look at conditions
            if not same or range_of(response) != (start, end, size):
                raise Changed(
                    f"{self._name(key)} broke off, and its server does not go on there: it may be another by now"
                )
            yield Body(response, self._name(key))

    def etag(self, key: str) -> str | None:
        """See Store. Whoever does not answer a HEAD may yet answer a GET: a signature is good for one of them only."""
        try:
            with closing(retry.call(lambda: self._exchange("HEAD", key), self._patience, sleep=self._sleep)) as answer:
                answer.raw.drain_conn()  # of nothing: it is kept for the GET that may come
                return _version(answer.headers)
        except NotFound:
            return None
        except Denied:
            return self._etag_by_get(key)

    def _etag_by_get(self, key: str) -> str | None:
        try:
            with self.open(key) as stored:
                return stored.etag
        except NotFound:
            return None

    def create(self, key: str) -> AbstractContextManager[Writer]:
        """See Store. Raises Denied: nothing can be written here."""
        raise Denied(f"{self._own.sibling(key)} can only be read, as all that {self._own.scheme}:// names")

    def _name(self, key: str) -> str:
        return str(self._own.sibling(key))

    def _exchange(self, method: str, key: str, headers: Mapping[str, str] | None = None) -> Response:
        """Ask for an object wherever it has gone to, in one try, and return its answer with its body unread."""
        place = self._own.sibling(key)
        for _ in range(1 + _MOST_REDIRECTIONS):
            response = self._send(method, place, headers or {})
            if response.status_code in (200, 203) or (response.status_code == 206 and headers):
                return response
            response.close()
            if response.status_code not in _REDIRECTIONS or "location" not in response.headers:
                raise _meaning(response.status_code, place)
            place = _redirected(place, response.headers["location"])
            self._sleep(0)  # time may be up
        raise Denied(f"{self._name(key)} redirects more than {_MOST_REDIRECTIONS} times")

    def _send(self, method: str, place: Location, headers: Mapping[str, str]) -> Response:
        endpoint = _origin(place)
        if endpoint not in self._transports:
            trust = Trust(os.environ.get("SSL_CERT_FILE", ""), hint=_TRUST, anywhere=self._link_local)
            self._transports[endpoint] = Transport(endpoint, trust)
        own = self._authorization if endpoint == _origin(self._own) else {}
        return self._transports[endpoint].send(method, _url(place), {**headers, **own})


def _authorization(credentials: BasicCredentials | BearerToken) -> str:
    if isinstance(credentials, BearerToken):
        return f"Bearer {credentials.token}"
    return "Basic " + base64.b64encode(f"{credentials.user}:{credentials.password}".encode()).decode()


def _url(place: Location) -> str:
    """Return a URL as it is sent: as it was given, but for what must be encoded and is not."""
    key = re.sub("%(?![0-9A-Fa-f]{2})", "%25", place.key)
    return f"{place.scheme}://{place.host}/{quote(key, safe=_LEGAL)}"


def _origin(place: Location) -> str:
    return f"{place.scheme}://{place.host.removesuffix(_DEFAULT_PORTS[place.scheme])}"


def _redirected(place: Location, target: str) -> Location:
    """Return where ``place`` has gone to, by what its server says. Raises Denied where nobody should follow."""
    try:
        # Servers write UTF-8; the HTTP client reads headers as Latin-1.
        found = locate(urljoin(_url(place), target.encode("latin-1").decode(errors="replace")))
    except ValueError:
        found = None
    if found is None or found.scheme not in _DEFAULT_PORTS:
        raise Denied(f"{place} redirects to something that is no plain http:// or https:// URL")
    if place.scheme == "https" and found.scheme == "http":
        raise Denied(f"{place} redirects to {found}, which is not encrypted any more")
    return found


def _meaning(status: int, place: Location) -> Denied | NotFound | Unavailable:
    """Return the error that an answer is."""
    if status in (404, 410):
        return NotFound(f"{place} does not exist: its server answered {status}")
    if status in (401, 403):
        where = "check the credentials, which go to the artifact's own host only"
        return Denied(f"{place} may not be read, its server answered {status}: {where}")
    if passing(status):
        return Unavailable(f"{place} cannot be read now: its server answered {status}")
    return Denied(f"{place} cannot be read: its server answered {status}")


def _strong(headers: Mapping[str, str]) -> str:
    """Return the ETag as it was written, if it promises the same bytes."""
    etag = headers.get("etag", "")
    return etag if etag.startswith('"') else ""


def _version(headers: Mapping[str, str]) -> str:
    """Return what Stored.etag is to be."""
    modified, length = headers.get("last-modified", ""), headers.get("content-length", "")
    return _strong(headers).strip('"') or (f"{modified}, {length} bytes" if modified and length else "")
