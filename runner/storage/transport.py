"""HTTP as stores use it: one request, one answer, and what it means when there is none.

With the modules that build each kind of store's requests, this is all that knows the HTTP client.
"""

from __future__ import annotations

import re
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from typing import NamedTuple

from requests import PreparedRequest, Response
from requests.exceptions import RequestException, SSLError
from requests.structures import CaseInsensitiveDict
from requests.utils import get_environ_proxies
from urllib3.exceptions import DecodeError, HTTPError

from runner import __version__
from runner.errors import MachineError, Unavailable
from runner.storage.base import CHUNK, Denied
from runner.storage.connections import Adapter

# Seconds to wait for a connection (and for each CHUNK to be taken by the network), and for the next bytes of an answer.
TIMEOUT = (10.0, 60.0)
# Bytes of an answer that are looked at when it is no object: errors and acknowledgements are a few hundred.
ANSWER = 64 * 1024

# A number in a header: of longer ones Python may not take the digits, and no object has so many bytes.
WHOLE = "[0-9]{1,18}"

# Seconds in which one read gathers what comes: whoever reads wants to look up now and then, whatever a server does.
_GATHERING = 10.0

# Connections that are kept open to one endpoint.
_CONNECTIONS = 16


@dataclass(frozen=True)
class Trust:
    """Whom to trust, and who we are: paths of PEM files, "" for the well-known authorities and for nobody.

    ``hint`` tells the operator how to name other authorities. ``anywhere``: see connections.Adapter.
    """

    authority: str = ""
    certificate: str = ""
    key: str = ""
    hint: str = "its authority is none of the well-known ones"
    anywhere: bool = False


class Transport:
    """Connections to one endpoint, which are kept; threads may share it. ``endpoint`` is what sentences call it.

    It is requests without its Session: that would follow redirections, unbounded and re-signed by ~/.netrc, normalise
    the signed path, and keep cookies. Proxies from the environment are honoured.
    """

    def __init__(self, endpoint: str, trust: Trust) -> None:
        self.endpoint = endpoint
        self._trust = trust
        self._certificate = (trust.certificate, trust.key) if trust.key else trust.certificate or None
        self._adapter = Adapter(anywhere=trust.anywhere, pool_maxsize=_CONNECTIONS)

    def send(self, method: str, url: str, headers: dict[str, str], body: bytes | memoryview | None = None) -> Response:
        """Send a request as it stands and return its answer with its body unread; the caller closes it.

        Raises Unavailable when there is no answer, MachineError for untrusted or unusable certificates, and Denied for
        places where a message must not reach.
        """
        prepared = PreparedRequest()
        prepared.method, prepared.url = method, url
        own = {"accept-encoding": "identity", "user-agent": f"studio-runner/{__version__}"}
        prepared.headers = CaseInsensitiveDict(headers | own)
        if body is not None:
            prepared.headers["content-length"] = str(len(body))
        prepared.body = _Slices(body) if body else None  # type: ignore[assignment]
        return self._send(prepared)

    def _send(self, prepared: PreparedRequest) -> Response:
        try:
            return self._adapter.send(
                prepared,
                stream=True,
                timeout=TIMEOUT,
                verify=self._trust.authority or True,
                cert=self._certificate,
                proxies=get_environ_proxies(prepared.url or "", no_proxy=None),
            )
        except SSLError as error:
            if "CERTIFICATE_VERIFY_FAILED" in str(error):
                raise MachineError(f"the certificate of {self.endpoint} is not trusted: {self._trust.hint}") from error
            raise self._silence(error) from error
        except RequestException as error:
            raise self._silence(error) from error
        except OSError as error:
            raise MachineError(
                f"the certificate files for {self.endpoint} cannot be used, {error}: {self._trust.hint}"
            ) from error

    def text(self, response: Response) -> bytes:
        """Return the beginning of an answer that is no object. Raises Unavailable when it breaks off."""
        try:
            text: bytes = response.raw.read(ANSWER, decode_content=False)
        except (HTTPError, OSError) as error:
            raise self._silence(error) from error
        return text

    def _silence(self, error: Exception) -> Unavailable:
        return Unavailable(f"{self.endpoint} does not answer as it should: {reason(error)}")


@dataclass(frozen=True)
class _Slices:
    """A body that is sent in pieces without being copied.

    The HTTP client sends a whole buffer under one time limit, which a large part would overrun on a slow network.
    """

    body: bytes | memoryview

    def __iter__(self) -> Iterator[memoryview]:
        view = memoryview(self.body)
        return (view[start : start + CHUNK] for start in range(0, len(view), CHUNK))


class Body:
    """The body of an answer, which must not look whole when it is not. ``name`` is the object's, for sentences.

    ``decode`` is whether to undo the answer's content encoding; the size is not known then.
    """

    def __init__(self, response: Response, name: str, *, decode: bool = False) -> None:
        self._response, self._name, self._decode = response, name, decode
        length = response.headers.get("content-length", "")
        self.size = int(length) if re.fullmatch(WHOLE, length) and not decode else None
        self._left = self.size
        self._begun = False
        self._broken: Denied | Unavailable | None = None

    def read(self, size: int = -1, /) -> bytes:
        """See Reader. It is less than ``size`` also when no more has come for a while, or before it breaks.

        With a plain read, a trickle would hold up its reader for long. Raises Denied for what cannot be decoded at all.
        """
        if size < 0:
            return b"".join(iter(lambda: self.read(CHUNK), b""))
        pieces, missing, end = [], size, time.monotonic() + _GATHERING
        while missing and (piece := self._piece(self._response.raw.read1, missing)):
            pieces.append(piece)
            missing -= len(piece)
            if time.monotonic() >= end:
                break
        return self._unbroken(b"".join(pieces))

    def gather(self, size: int, /) -> bytes:
        """See ranges.Opened.

        What ``read`` gets is cut to the length that came, and glibc keeps each cutting, so that no later piece fits in
        there again: a heap grows by some MiB for each thread that does so for long.
        """
        return self._unbroken(self._piece(self._response.raw.read, size))

    def _unbroken(self, data: bytes) -> bytes:
        if self._broken and not data:
            raise self._broken
        return data

    def _piece(self, read: Callable[..., bytes | None], size: int) -> bytes:
        if self._broken:
            return b""
        try:
            data = read(size, decode_content=self._decode) or b""
        except (HTTPError, OSError) as error:
            if isinstance(error, DecodeError) and not self._begun:
                self._broken = Denied(f"{self._name!r} is called compressed by its server, and is not")
            else:
                self._broken = Unavailable(f"the transfer of {self._name!r} broke off: {reason(error)}")
            self._broken.__cause__ = error
            return b""
        self._begun = True
        if self._left is not None:
            self._left -= len(data)
            if self._left and not data:
                self._broken = Unavailable(f"the transfer of {self._name!r} ended {self._left} bytes too early")
        return data

    def abort(self) -> None:
        """Break off, from another thread: whoever waits in ``read`` gets an Unavailable."""
        with suppress(Exception):  # it may be closed already, in any of its layers
            self._response.raw.shutdown()


def reason(error: BaseException) -> str:
    """Say why, in the words of the innermost error: the outer ones repeat the URL and can name a proxy's password."""
    causes = (error.__cause__, getattr(error, "reason", None), *error.args)
    inner = next((cause for cause in causes if isinstance(cause, BaseException)), None)
    if inner is not None:
        return reason(inner)
    return error.strerror or str(error) if isinstance(error, OSError) and error.errno else type(error).__name__


def passing(status: int) -> bool:
    """Tell whether the same request may succeed later, as far as its status says."""
    return status in (408, 429) or (status >= 500 and status != 501)


class Range(NamedTuple):
    """Which bytes an answer has, from ``start`` to before ``end``, and how many the whole object has."""

    start: int
    end: int
    size: int


def range_of(response: Response) -> Range | None:
    """Return what a 206 says that it has; None when it says nothing, and for other answers."""
    found = re.fullmatch(rf"bytes ({WHOLE})-({WHOLE})/({WHOLE})", response.headers.get("content-range", ""))
    if not found or response.status_code != 206:
        return None
    return Range(int(found[1]), int(found[2]) + 1, int(found[3]))


def is_part(response: Response, start: int, end: int) -> bool:
    """Tell whether an answer is that part of an object: from the byte ``start`` to the one before ``end``."""
    found = range_of(response)
    return found is not None and (found.start, found.end) == (start, end)
