"""RabbitMQ's management API: which queues there are."""

from __future__ import annotations

import os
from typing import Any
from urllib.parse import quote, unquote, urlsplit

import pika

from runner.errors import ConfigError, Unavailable
from runner.queues.amqp import EXCHANGE, PREFIX

# In seconds: how long it may take to connect, and to answer.
_ANSWER = (3.0, 10.0)
_OTHERWISE = "set --amqp-mgt-url, or name the queues with --queue"


class Management:
    """The broker's management API, at ``url``, or "" for the usual place; ``ca``: authorities that it is trusted by."""

    def __init__(self, url: str, parameters: pika.URLParameters, ca: str = "") -> None:
        self._verify: str | bool = ca or True
        scheme = "https" if parameters.ssl_options else "http"
        host = f"[{parameters.host}]" if ":" in parameters.host else parameters.host
        parts = urlsplit(os.path.expandvars(url) or f"{scheme}://{host}:{parameters.port + 10000}")
        if parts.scheme not in ("http", "https") or not parts.hostname:
            raise ConfigError("--amqp-mgt-url cannot be understood: http[s]://HOST:PORT is needed")
        self._base = f"{parts.scheme}://{parts.netloc.rpartition('@')[2]}{parts.path.rstrip('/')}"
        self._vhost = quote(parameters.virtual_host, safe="")
        self._user = unquote(parts.username or "") or parameters.credentials.username
        self._password = unquote(parts.password or "") or parameters.credentials.password

    def bound_queues(self) -> set[str]:
        """Return the names of the queues that clients have bound to their exchange. Blocks. Raises Unavailable."""
        # None: no client has made the exchange yet, or the last one has taken it away.
        bindings = self._get(f"exchanges/{self._vhost}/{EXCHANGE}/bindings/source")
        try:
            return _bound_queues([] if bindings is None else bindings)
        except (TypeError, KeyError, AttributeError) as error:
            raise self._unavailable("answers with no bindings: check --amqp-mgt-url") from error

    def window(self, queue: str) -> float | None:
        """Return for how many seconds a queue lets a message be held, where its arguments or a policy say so.

        The limit of the whole broker is not told. Blocks. Raises Unavailable.
        """
        found = self._get(f"queues/{self._vhost}/{quote(queue, safe='')}?disable_stats=true&enable_queue_totals=true")
        told = found or {}
        try:
            policy = told.get("effective_policy_definition") or {}
            limit = (told.get("arguments") or {}).get("x-consumer-timeout") or policy.get("consumer-timeout")
        except AttributeError as error:
            raise self._unavailable("answers with no queue: check --amqp-mgt-url") from error
        return limit / 1000 if isinstance(limit, int) else None

    def _get(self, path: str) -> Any:
        """Return the answer, None when there is no such thing."""
        # Imported in the thread that this is called in, while the main thread connects.
        import requests  # noqa: PLC0415

        try:
            answer = requests.get(
                f"{self._base}/api/{path}", auth=(self._user, self._password), timeout=_ANSWER, verify=self._verify
            )
        except requests.exceptions.SSLError as error:
            raise self._unavailable("has a certificate that is not trusted: set --amqp-ca") from error
        except requests.RequestException as error:
            how = f"cannot be reached ({type(error).__name__})"
            raise self._unavailable(f"{how}: enable the plugin rabbitmq_management, {_OTHERWISE}") from error
        if answer.status_code in (401, 403):
            raise self._unavailable(f"refuses user {self._user!r}: give that user the tag management, {_OTHERWISE}")
        try:
            told = answer.json()
            # A 404 of a proxy's has no such word, and must not be taken for the end of all queues.
            if answer.status_code == 404 and isinstance(told, dict) and "error" in told:
                return None
            answer.raise_for_status()
            return told
        except (requests.RequestException, ValueError, RecursionError) as error:
            raise self._unavailable(
                f"answers with status {answer.status_code} and no JSON: check --amqp-mgt-url"
            ) from error

    def _unavailable(self, why: str) -> Unavailable:
        return Unavailable(f"the queues of RabbitMQ cannot be listed: its management API at {self._base} {why}")


def _bound_queues(bindings: object) -> set[str]:
    """Raises TypeError, KeyError and AttributeError for what is no list of bindings."""
    if not isinstance(bindings, list):
        raise TypeError(bindings)
    return {
        binding["destination"]
        for binding in bindings
        if binding["destination_type"] == "queue" and binding["routing_key"].startswith(PREFIX)
    }
