"""Asking a registry what the name of a container image stands for just now.

https://distribution.github.io/distribution/spec/api/ and its /auth/token/ say how.
"""

from __future__ import annotations

import base64
import json
import re
from contextlib import closing
from urllib.parse import urlencode, urlsplit

from requests import Response

from runner.errors import RunnerError
from runner.machine.users import own_home
from runner.storage.base import BasicCredentials
from runner.storage.transport import Transport, Trust

_MANIFESTS = ", ".join(
    (
        "application/vnd.oci.image.index.v1+json",
        "application/vnd.oci.image.manifest.v1+json",
        "application/vnd.docker.distribution.manifest.list.v2+json",
        "application/vnd.docker.distribution.manifest.v2+json",
    )
)
_DOCKER_HUB = "registry-1.docker.io"
# Under what name logins of it are kept.
_DOCKER_HUB_LOGIN = "https://index.docker.io/v1/"
_LOGINS = (".apptainer/docker-config.json", ".singularity/docker-config.json", ".docker/config.json")

_REFERENCE = re.compile(
    r"docker://((?P<host>[^/]*[.:][^/]*|localhost)/)?(?P<name>[^:@]+)(:(?P<tag>[^:@/]+))?(@(?P<digest>sha256:\w+))?"
)


def pinned(reference: str, credentials: BasicCredentials | None, *, plain: bool) -> str:
    """Return a ``docker://`` reference by digest, "" when its registry does not tell that.

    Without ``credentials`` it is asked with the logins that this user's files have. ``plain``: without TLS.
    """
    match = _REFERENCE.fullmatch(reference)
    if match is None:
        return ""
    shown = f"docker://{match['host']}/" if match["host"] else "docker://"
    if match["digest"]:
        return f"{shown}{match['name']}@{match['digest']}"  # apptainer takes no tag beside it
    host, name = match["host"] or _DOCKER_HUB, match["name"]
    if host in ("docker.io", _DOCKER_HUB):
        host, name = _DOCKER_HUB, name if "/" in name else f"library/{name}"
    login = _basic(credentials) if credentials else _kept_login(match["host"] or _DOCKER_HUB_LOGIN)
    try:
        registry = _Registry(f"{'http' if plain else 'https'}://{host}", login)
        digest = registry.digest(name, match["tag"] or "latest")
    except (RunnerError, ValueError):
        return ""
    return f"{shown}{match['name']}@{digest}" if digest else ""


class _Registry:
    """One registry at a URL; ``login`` is the header that it may be shown, "" for none."""

    def __init__(self, url: str, login: str) -> None:
        self._url, self._login = url, login
        self._transport = Transport(url, Trust())

    def digest(self, name: str, tag: str) -> str:
        url, headers = f"{self._url}/v2/{name}/manifests/{tag}", {"accept": _MANIFESTS}
        with closing(self._transport.send("HEAD", url, headers)) as answer:
            status, challenge = answer.status_code, answer.headers.get("www-authenticate", "")
            if status != 401:
                return _digest(answer)
        authorization = self._token(challenge) if challenge.lower().startswith("bearer ") else self._login
        with closing(self._transport.send("HEAD", url, {**headers, "authorization": authorization})) as answer:
            return _digest(answer)

    def _token(self, challenge: str) -> str:
        """Return the header that a token service gives; the registry names it."""
        asked = dict(re.findall(r'(\w+)="([^"]*)"', challenge))
        realm = asked.pop("realm", "")
        if not realm.startswith("https://") and urlsplit(realm).netloc != urlsplit(self._url).netloc:
            raise ValueError("the login goes nowhere without TLS but to the registry itself")
        query = urlencode({name: asked[name] for name in ("service", "scope") if name in asked})
        headers = {"authorization": self._login} if self._login else {}
        with closing(self._transport.send("GET", f"{realm}?{query}", headers)) as answer:
            given = json.loads(self._transport.text(answer))
        if not isinstance(given, dict):
            raise ValueError("what should give a token gives none")
        return f"Bearer {given.get('token') or given.get('access_token')}"


def _digest(answer: Response) -> str:
    told = answer.headers.get("docker-content-digest", "")
    return told if answer.status_code == 200 and re.fullmatch(r"sha256:[0-9a-f]{64}", told) else ""


def _basic(credentials: BasicCredentials) -> str:
    pair = f"{credentials.user}:{credentials.password}"
    return f"Basic {base64.b64encode(pair.encode()).decode()}"


def _kept_login(registry: str) -> str:
    """Return the login for a registry that apptainer's or docker's own program has kept."""
    for name in _LOGINS:
        try:
            found = json.loads((own_home() / name).read_text())["auths"][registry]["auth"]
        except (OSError, ValueError, KeyError, TypeError):
            continue
        return f"Basic {found}"
    return ""
