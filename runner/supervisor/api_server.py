"""A pod's way to the API server of its cluster: its service account's token and authority, and ConfigMaps."""

from __future__ import annotations

import re
import socket
import ssl
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import requests
from requests.adapters import HTTPAdapter
from requests.utils import get_environ_proxies

#: Where a pod finds what its service account may use.
ACCOUNT = Path("/var/run/secrets/kubernetes.io/serviceaccount")
WATCH = 300
"""For how long one watch is asked for; the server ends it then, and sooner if it likes. In seconds."""
# How long the server may take to connect, and to answer. In seconds.
_ANSWER = (5.0, 30.0)
# A watch says nothing for long; when it is silent for longer than this, its connection is dead. In seconds.
_SILENCE = WATCH + 30.0
# And if whoever is at its other end is gone without a word, that is found out within a minute: keepalives after 30 s.
_SOCKET_OPTIONS = [
    (socket.IPPROTO_TCP, socket.TCP_NODELAY, 1),
    (socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1),
    (socket.IPPROTO_TCP, socket.TCP_KEEPIDLE, 30),
    (socket.IPPROTO_TCP, socket.TCP_KEEPINTVL, 10),
    (socket.IPPROTO_TCP, socket.TCP_KEEPCNT, 3),
]


class Trouble(Exception):
    """The API server does not say what is asked; the text says why. ``passing``: it may well say it in a moment."""

    def __init__(self, text: str, *, passing: bool = False) -> None:
        super().__init__(text)
        self.passing = passing


class Expired(Trouble):
    """The changes since the last one seen are forgotten by the server: the map has to be read again."""

    def __init__(self) -> None:
        super().__init__("the API server has forgotten what was read of it", passing=True)


class Refused(Trouble):
    """The service account lacks rights."""


@dataclass(frozen=True)
class Pod:
    """A pod's way to its API server. ``account`` is the directory of its service account."""

    url: str
    account: Path
    namespace: str
    name: str

    @classmethod
    def of(cls, environ: Mapping[str, str], namespace: str = "", account: Path = ACCOUNT) -> Pod:
        """Find the API server in a pod's environment; ``namespace`` "" is the pod's own."""
        host, port = environ["KUBERNETES_SERVICE_HOST"], environ.get("KUBERNETES_SERVICE_PORT", "443")
        if not namespace:
            try:
                namespace = (account / "namespace").read_text().strip()
            except OSError:
                namespace = "default"
        shown = f"[{host}]" if ":" in host else host
        return cls(f"https://{shown}:{port}", account, namespace, environ.get("HOSTNAME") or socket.gethostname())

    def configmaps(self, name: str, parameters: Mapping[str, str] | None = None) -> requests.Response:
        """Ask for the ConfigMap of that name, as a list or as a stream of events. Raises Trouble and Expired.

        It is a list because that is empty when there is no such map, and tells from which version to watch for it.
        """
        wanted = {"fieldSelector": f"metadata.name={name}", **(parameters or {})}
        where = f"{self.url}/api/v1/namespaces/{self.namespace}/configmaps"
        # Read each time: Kubernetes exchanges a token long before it runs out, and may exchange its authority.
        token, authority = self._read("token"), self._read("ca.crt")
        if not re.fullmatch(r"[!-~]+", token):
            raise Trouble(f"{self.account / 'token'} holds no token: let the kubelet write one there")
        headers = {"Authorization": f"Bearer {token}", "Accept-Encoding": "identity"}
        # No Session: that would let ~/.netrc replace the token, and experiments can write that file.
        request = requests.Request("GET", where, params=wanted, headers=headers).prepare()
        return self._checked(self._send(request, authority, stream="watch" in wanted))

    def _read(self, name: str) -> str:
        """Return one of the files that the kubelet puts into the pod. Raises Trouble."""
        path = self.account / name
        try:
            return path.read_text().strip()
        except (OSError, ValueError) as error:
            why = getattr(error, "strerror", None) or "it is no text"
            raise Trouble(
                f"the pod has no service account to ask with: {path}: {why} (automountServiceAccountToken)"
            ) from error

    def _send(self, request: requests.PreparedRequest, authority: str, *, stream: bool) -> requests.Response:
        try:
            adapter = _Adapter(authority)
        except (ssl.SSLError, ValueError) as error:
            raise Trouble(
                f"{self.account / 'ca.crt'} holds no certificate: it names the cluster's authority"
            ) from error
        try:
            answer = adapter.send(
                request,
                stream=True,
                timeout=(_ANSWER[0], _SILENCE) if stream else _ANSWER,
                verify=str(self.account / "ca.crt"),
                proxies=get_environ_proxies(self.url, no_proxy=None),
            )
            if not stream:
                _ = answer.content  # read now, so that it breaks here if it breaks
            return answer
        except OSError as error:  # requests' errors are OSErrors too
            fault = _innermost(error)
            if isinstance(fault, ssl.SSLCertVerificationError):
                raise Trouble(
                    f"the server at {self.url} is not the cluster's, going by its certificate and the authority in "
                    f"{self.account / 'ca.crt'}: {fault.verify_message}"
                ) from error
            raise Trouble(
                f"the API server at {self.url} cannot be asked ({type(error).__name__}): is a network policy, or a "
                "proxy, in the way?",
                passing=True,
            ) from error
        finally:
            adapter.close()

    def _checked(self, answer: requests.Response) -> requests.Response:
        """Return an answer that says what was asked for. Raises Trouble and Expired."""
        status = answer.status_code
        if status == 200:
            return answer
        said = _message(answer)
        if status == 410:
            raise Expired()
        if status == 401:
            raise Trouble(
                "the API server does not accept the token of this pod's service account, which has run out or is of an "
                f"account that is gone: end the pod, the next one gets another ({said})",
                passing=True,
            )
        if status == 403:
            raise Refused(
                "the API server does not let this pod's service account read ConfigMaps of namespace "
                f"{self.namespace}: give it the verbs get, list and watch on them ({said})",
                passing=True,
            )
        raise Trouble(
            f"the API server at {self.url} answers with status {status} ({said})",
            passing=status == 429 or status >= 500,
        )


class _Adapter(HTTPAdapter):
    """Connections to whom an authority vouches for, as other clients of Kubernetes check it.

    Authorities of clusters, EKS' among them, have no key identifiers, which Python insists on since 3.13:
    https://github.com/kubernetes-client/python/issues/2394
    """

    def __init__(self, authority: str) -> None:
        self._context = ssl.create_default_context(cadata=authority)
        self._context.verify_flags &= ~ssl.VERIFY_X509_STRICT
        super().__init__()

    def init_poolmanager(self, *args: Any, **options: Any) -> None:
        """See HTTPAdapter."""
        super().init_poolmanager(*args, ssl_context=self._context, socket_options=_SOCKET_OPTIONS, **options)

    def proxy_manager_for(self, *args: Any, **options: Any) -> Any:
        """See HTTPAdapter."""
        return super().proxy_manager_for(*args, ssl_context=self._context, **options)


def _message(answer: requests.Response) -> str:
    """Return what the API server says of a refusal, in its own words: they name the account and the verb."""
    try:
        return str(answer.json()["message"])[:300]
    except (OSError, ValueError, TypeError, KeyError):
        return answer.reason
    finally:
        answer.close()


def _innermost(error: BaseException) -> BaseException:
    while error.__context__ is not None:
        error = error.__context__
    return error
