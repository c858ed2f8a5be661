"""Whether Kubernetes wants work to be taken: the key ``STATE`` of two ConfigMaps (protocol section 11).

Each map is watched by a thread of its own: what the API server says arrives at once, and nothing in the loop waits.
"""

from __future__ import annotations

import json
import logging
import os
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from threading import Event, Thread
from typing import Any

import requests

from runner.loop import Loop
from runner.retry import Patience
from runner.supervisor.api_server import WATCH, Expired, Pod, Trouble

log = logging.getLogger(__name__)

_STATES = {"Running": False, "DrainAndSuspend": True}
# How soon, and how late, the server is asked again. In seconds.
_AGAIN = Patience(total=float("inf"), first=1.0, longest=30.0)
# A watch that ended well within this time is not asked for again sooner: some proxies cut them all. In seconds.
_SHORTEST = 1.0
# How long no work is taken because the server does not answer at first, or refuses: networks of pods come up late, and
# a server that has just started knows of no rights yet. In seconds.
_PATIENCE = 15.0


class _Watch:
    """One ConfigMap, read and watched for ever. ``told`` is called with its STATE, None when it says nothing."""

    def __init__(self, pod: Pod, name: str, told: Callable[[str | None], object], patience: float) -> None:
        self._pod, self._name, self._told = pod, name, told
        self._state: str | None = None
        self._said = ""
        self._delays = _AGAIN.delays()
        self._patience = time.monotonic() + patience
        self._closed = Event()
        self.thread = Thread(target=self._run, name=f"configmap-{name}", daemon=True)
        self.thread.start()

    def close(self) -> None:
        """Begin nothing more."""
        self._closed.set()

    def _run(self) -> None:
        while not self._closed.is_set():
            began = time.monotonic()
            try:
                # Read each time, though a watch could go on where the last one ended: of a cluster that was restored
                # from a backup, which is behind what was seen of it, that would tell nothing for long.
                self._follow(self._read())
            except Expired:
                pass
            except Trouble as trouble:
                self._say(trouble)
                self._closed.wait(next(self._delays))
            self._closed.wait(_SHORTEST - (time.monotonic() - began))

    def _read(self) -> str:
        """Tell what the map holds now, and return the version from which to follow it."""
        state, version = read(self._pod, self._name)
        self._tell(state)
        return version

    def _follow(self, version: str) -> None:
        """Tell every change after a version until the watch ends."""
        parameters = {
            "watch": "true",
            "resourceVersion": version,
            "allowWatchBookmarks": "true",
            "timeoutSeconds": str(WATCH),
        }
        with self._pod.configmaps(self._name, parameters) as answer:
            self._well()
            for event in _events(answer):
                try:
                    kind, thing = event["type"], event["object"]
                    if kind == "ERROR":
                        raise _failure(thing)
                    if kind in ("ADDED", "MODIFIED", "DELETED"):
                        self._tell(None if kind == "DELETED" else _state(thing))
                except (TypeError, KeyError, AttributeError) as error:
                    raise Trouble(f"the server at {self._pod.url} sends what is no event") from error

    def _tell(self, state: str | None) -> None:
        self._state = state
        self._told(state)

    def _well(self) -> None:
        if self._said:
            log.info("ConfigMap %s can be read and watched again", self._name)
        self._said, self._delays = "", _AGAIN.delays()

    def _say(self, trouble: Trouble) -> None:
        """What was known last holds until more is known."""
        text = f"ConfigMap {self._name} cannot be watched: {trouble}; trying again until it works"
        if text != self._said:
            log.warning("%s", text)
            self._said = text
        if not trouble.passing or time.monotonic() >= self._patience:
            self._told(self._state)


def _failure(status: Any) -> Exception:
    """Return why a watch ends: the last event's Status."""
    if status["code"] == 410:
        return Expired()
    return Trouble(
        f"the API server ends the watch with status {status['code']} ({status.get('message')})", passing=True
    )


def _events(answer: requests.Response) -> Iterator[Any]:
    """Yield the events of a watch until it ends: each is a line of JSON. One that is cut off ends it too."""
    try:
        for line in answer.iter_lines(chunk_size=None):
            if line:
                yield json.loads(line)
    except (requests.RequestException, ValueError):
        return


def read(pod: Pod, name: str) -> tuple[str | None, str]:
    """Return a ConfigMap's STATE, None when it says nothing, and from which version to watch it. Raises Trouble."""
    with pod.configmaps(name) as answer:
        try:
            found = answer.json()
            state = _state(found["items"][0]) if found["items"] else None
            return state, str(found["metadata"]["resourceVersion"])
        except (ValueError, TypeError, KeyError, AttributeError) as error:
            raise Trouble(f"the server at {pod.url} does not answer with ConfigMaps") from error


def suspending(names: Sequence[str], states: Mapping[str, str | None]) -> str:
    """Return the name of the ConfigMap that suspends a runner, "" for none; the first that has a state decides."""
    decisive = next((name for name in names if states.get(name) in _STATES), "")
    return decisive if _STATES.get(states.get(decisive) or "") else ""


def _state(configmap: Any) -> str | None:
    state = (configmap.get("data") or {}).get("STATE")
    return str(state) if state else None


class PodState:
    """What the pods' common map and this pod's own map say; the pod's own wins. Tells the loop when it changes.

    ``patience``: for how many seconds no work is taken because a map cannot be asked for at first.
    """

    def __init__(self, loop: Loop, pod: Pod, common: str, *, patience: float = _PATIENCE) -> None:
        self._loop = loop
        self._states: dict[str, str | None] = {}
        self._names = tuple(dict.fromkeys((pod.name, common)))
        self._logged = ""
        self.watches = [_Watch(pod, name, partial(self._hear, name), patience) for name in self._names]

    @property
    def suspended(self) -> bool:
        """True when no work is to be taken. That is so too until both maps have been asked for once."""
        return len(self._states) < len(self._names) or bool(suspending(self._names, self._states))

    def close(self) -> None:
        """Heed the maps no more. Their threads end with the process at the latest."""
        for watch in self.watches:
            watch.close()

    def _hear(self, name: str, state: str | None) -> None:
        """Called by a watch, in its thread."""
        self._loop.add_callback(partial(self._heed, name, state))

    def _heed(self, name: str, state: str | None) -> None:
        if state and state not in _STATES and state != self._states.get(name):
            log.warning("ConfigMap %s: STATE is %r, but must be Running or DrainAndSuspend: ignored", name, state)
        self._states[name] = state
        decisive = suspending(self._names, self._states)
        if len(self._states) == len(self._names) and decisive != self._logged:
            self._logged = decisive
            if decisive:
                log.warning("suspended by ConfigMap %s: no new work is taken", decisive)
            else:
                log.warning("work is taken again")


def watch(loop: Loop, namespace: str, common: str) -> PodState:
    """Watch the state of the pod that this process runs in."""
    return PodState(loop, Pod.of(os.environ, namespace), common)
