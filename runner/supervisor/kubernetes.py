"""Whether Kubernetes wants work to be taken: the key ``STATE`` of two ConfigMaps (protocol section 11).

Each map is watched by a thread of its own: what the API server says arrives at once, and nothing in the loop waits.
"""

from __future__ import annotations

import json
import logging
import os
import socket
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from threading import Event, Thread
from typing import Any

import requests

from runner.loop import Loop
from runner.retry import Patience

log = logging.getLogger(__name__)

#: Where a pod finds what its service account may use.
ACCOUNT = Path("/var/run/secrets/kubernetes.io/serviceaccount")
_STATES = {"Running": False, "DrainAndSuspend": True}
# For how long one watch is asked for; the server ends it then, and sooner if it likes. In seconds.
_WATCH = 300
# How long the server may take to connect, and to answer. In seconds.
_ANSWER = (5.0, 30.0)
# A watch says nothing for long; when it is silent for longer than this, its connection is dead. In seconds.
_SILENCE = _WATCH + 30.0
# How soon, and how late, the server is asked again. In seconds.
_AGAIN = Patience(total=float("inf"), first=1.0, longest=30.0)
# A watch that ended well within this time is not asked for again sooner: some proxies cut them all. In seconds.
_SHORTEST = 1.0


class Trouble(Exception):
    """The API server does not say what the map holds; the text says why."""


class _Expired(Exception):
    """The changes since the last one seen are forgotten by the server: the map has to be read again."""


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

    def ask(self, parameters: Mapping[str, str], *, stream: bool = False) -> requests.Response:
        """Ask for ConfigMaps. Raises Trouble and _Expired."""
        where = f"{self.url}/api/v1/namespaces/{self.namespace}/configmaps"
        try:
            # Read each time: Kubernetes exchanges a token long before it runs out.
            token = (self.account / "token").read_text().strip()
            answer = requests.get(
                where,
                params=dict(parameters),
                headers={"Authorization": f"Bearer {token}", "Accept-Encoding": "identity"},
                verify=str(self.account / "ca.crt"),
                timeout=(_ANSWER[0], _SILENCE) if stream else _ANSWER,
                stream=stream,
            )
        except OSError as error:  # requests' errors are OSErrors too
            raise Trouble(f"the API server at {self.url} cannot be asked ({type(error).__name__})") from error
        if answer.status_code == 200:
            return answer
        answer.close()
        if answer.status_code == 410:
            raise _Expired
        if answer.status_code in (401, 403):
            raise Trouble(
                "the API server does not let this pod's service account read ConfigMaps of namespace "
                f"{self.namespace}: give it the verbs get, list and watch on them"
            )
        raise Trouble(f"the API server at {self.url} answers with status {answer.status_code}")


class _Watch:
    """One ConfigMap, read and watched for ever. ``told`` is called with its STATE, None when it says nothing."""

    def __init__(self, pod: Pod, name: str, told: Callable[[str | None], object]) -> None:
        self._pod, self._name, self._told = pod, name, told
        self._state: str | None = None
        self._said = ""
        self._closed = Event()
        self.thread = Thread(target=self._run, name=f"configmap-{name}", daemon=True)
        self.thread.start()

    def close(self) -> None:
        """Begin nothing more."""
        self._closed.set()

    def _run(self) -> None:
        delays = _AGAIN.delays()
        while not self._closed.is_set():
            try:
                version = self._read()
                self._said, delays = "", _AGAIN.delays()
                while not self._closed.is_set():
                    began = time.monotonic()
                    version = self._follow(version)
                    self._closed.wait(_SHORTEST - (time.monotonic() - began))
            except _Expired:
                self._closed.wait(_SHORTEST)
            except Trouble as trouble:
                self._say(f"ConfigMap {self._name} cannot be read: {trouble}; trying again until it works")
                self._closed.wait(next(delays))

    def _read(self) -> str:
        """Tell what the map holds now, and return the version from which to follow it."""
        with self._pod.ask({"fieldSelector": f"metadata.name={self._name}"}) as answer:
            try:
                found = answer.json()
                self._tell(_state(found["items"][0]) if found["items"] else None)
                return str(found["metadata"]["resourceVersion"])
            except (ValueError, TypeError, KeyError, AttributeError) as error:
                raise Trouble(f"the API server at {self._pod.url} does not answer with ConfigMaps") from error

    def _follow(self, version: str) -> str:
        """Tell every change until the watch ends, and return the version to go on from."""
        parameters = {
            "fieldSelector": f"metadata.name={self._name}",
            "watch": "true",
            "resourceVersion": version,
            "allowWatchBookmarks": "true",
            "timeoutSeconds": str(_WATCH),
        }
        with self._pod.ask(parameters, stream=True) as answer:
            for event in _events(answer):
                try:
                    kind, thing = event["type"], event["object"]
                    if kind == "ERROR":
                        raise _Expired
                    version = str(thing["metadata"]["resourceVersion"])
                    if kind in ("ADDED", "MODIFIED", "DELETED"):
                        self._tell(None if kind == "DELETED" else _state(thing))
                except (TypeError, KeyError, AttributeError) as error:
                    raise Trouble(f"the API server at {self._pod.url} sends what is no event") from error
        return version

    def _tell(self, state: str | None) -> None:
        self._state = state
        self._told(state)

    def _say(self, trouble: str) -> None:
        """What was known last holds until more is known."""
        if trouble != self._said:
            log.warning("%s", trouble)
            self._said = trouble
        self._told(self._state)


def _events(answer: requests.Response) -> Iterator[Any]:
    """Yield the events of a watch until it ends: each is a line of JSON. One that is cut off ends it too."""
    try:
        for line in answer.iter_lines(chunk_size=None):
            if line:
                yield json.loads(line)
    except (requests.RequestException, ValueError):
        return


def _state(configmap: Any) -> str | None:
    state = (configmap.get("data") or {}).get("STATE")
    return str(state) if state else None


class PodState:
    """What the pods' common map and this pod's own map say; the pod's own wins. Tells the loop when it changes."""

    def __init__(self, loop: Loop, pod: Pod, common: str) -> None:
        self._loop = loop
        self._states: dict[str, str | None] = {}
        self._names = tuple(dict.fromkeys((pod.name, common)))
        self._logged = False
        self.watches = [_Watch(pod, name, partial(self._hear, name)) for name in self._names]

    @property
    def suspended(self) -> bool:
        """True when no work is to be taken. That is so too until both maps have been asked for once."""
        if len(self._states) < len(self._names):
            return True
        wanted = (self._states[name] for name in self._names)
        return _STATES.get(next((state for state in wanted if state), "Running"), False)

    def close(self) -> None:
        """Heed the maps no more. Their threads end with the process at the latest."""
        for watch in self.watches:
            watch.close()

    def _hear(self, name: str, state: str | None) -> None:
        """Called by a watch, in its thread."""
        self._loop.add_callback(partial(self._heed, name, state))

    def _heed(self, name: str, state: str | None) -> None:
        if state and state not in _STATES:
            log.warning("ConfigMap %s: STATE is %r, but must be Running or DrainAndSuspend: ignored", name, state)
            state = None
        self._states[name] = state
        if len(self._states) == len(self._names) and self.suspended != self._logged:
            self._logged = self.suspended
            log.warning("%s", "suspended: no new work is taken" if self.suspended else "work is taken again")


def watch(loop: Loop, namespace: str, common: str) -> PodState:
    """Watch the state of the pod that this process runs in."""
    return PodState(loop, Pod.of(os.environ, namespace), common)
