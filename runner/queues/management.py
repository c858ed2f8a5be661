"""RabbitMQ's management API: which queues there are."""

from __future__ import annotations

import os
from urllib.parse import quote, unquote, urlsplit

import pika

from runner.errors import ConfigError, Unavailable
from runner.queues.amqp import EXCHANGE, PREFIX

# In seconds: how long it may take to connect, and to answer.
_ANSWER = (3.0, 10.0)


class Management:
    """The broker's management API, at ``url``, or "" for the usual place."""

    def __init__(self, url: str, parameters: pika.URLParameters) -> None:
        scheme = "https" if parameters.ssl_options else "http"
        host = f"[{parameters.host}]" if ":" in parameters.host else parameters.host
        parts = urlsplit(os.path.expandvars(url) or f"{scheme}://{host}:{parameters.port + 10000}")
        if parts.scheme not in ("http", "https") or not parts.hostname:
            raise ConfigError("--amqp-mgt-url cannot be understood: http[s]://HOST:PORT is needed")
        self._base = f"{parts.scheme}://{parts.netloc.rpartition('@')[2]}{parts.path.rstrip('/')}"
        self._path = f"/api/exchanges/{quote(parameters.virtual_host, safe='')}/{EXCHANGE}/bindings/source"
        self._user = unquote(parts.username or "") or parameters.credentials.username
        self._password = unquote(parts.password or "") or parameters.credentials.password

    def bound_queues(self) -> set[str]:
        """Return the names of the queues that clients have bound to their exchange. Blocks. Raises Unavailable."""
        # Imported in the thread that this is called in, while the main thread connects.
        import requests  # noqa: PLC0415

        try:
            answer = requests.get(self._base + self._path, auth=(self._user, self._password), timeout=_ANSWER)
        except requests.RequestException as error:
            how = f"cannot be reached ({type(error).__name__})"
            raise self._unavailable(f"{how}: enable the plugin rabbitmq_management, or set --amqp-mgt-url") from error
        if answer.status_code == 404:
            return set()  # no client has made the exchange yet, or the last one has taken it away
        if answer.status_code in (401, 403):
            raise self._unavailable(f"refuses user {self._user!r}: give that user the tag management")
        try:
            answer.raise_for_status()
            return _bound_queues(answer.json())
        except (requests.RequestException, ValueError, TypeError, KeyError) as error:
            raise self._unavailable(
                f"answers with status {answer.status_code} and no bindings: check --amqp-mgt-url"
            ) from error

    def _unavailable(self, why: str) -> Unavailable:
        return Unavailable(f"the queues of RabbitMQ cannot be listed: its management API at {self._base} {why}")


def _bound_queues(bindings: list[dict[str, str]]) -> set[str]:
    return {
        binding["destination"]
        for binding in bindings
        if binding["destination_type"] == "queue" and binding["routing_key"].startswith(PREFIX)
    }
