"""Connections that never reach what a machine tells only its own programs, such as the credentials its cloud gives it.

What is fetched for a message goes to whoever wrote it. Experiments have the runner's network too, unless the operator
takes it from them: the runner, at least, does not read such things for them.
"""

from __future__ import annotations

import socket
from contextlib import suppress
from ipaddress import IPv4Address, IPv6Address, ip_address, ip_network
from typing import Any
from urllib.parse import urlsplit

from requests import PreparedRequest, Response
from requests.adapters import HTTPAdapter
from urllib3 import HTTPConnectionPool, HTTPSConnectionPool, PoolManager
from urllib3.connection import HTTPConnection, HTTPSConnection

from runner.storage.base import Denied

_PRIVATE = [
    ip_network(network)
    for network in (
        "169.254.0.0/16",  # link-local: the metadata of most clouds, and the credentials of ECS's tasks and EKS's pods
        "fe80::/10",
        "fd00:ec2::/32",  # the same of AWS, in IPv6
        "fd20:ce::254/128",  # Google's, in IPv6
        "100.100.100.200/32",  # Alibaba's
        "168.63.129.16/32",  # Azure's, beside the link-local one
    )
]
# Addresses of IPv4 in networks that have IPv6 only (RFC 6052).
_TRANSLATED = ip_network("64:ff9b::/96")


class Adapter(HTTPAdapter):
    """requests' adapter over such connections. A proxy is the operator's, and so is what it can reach by a name.

    ``anywhere``: the operator lets messages reach those places, too.
    """

    def __init__(self, *, anywhere: bool, **options: Any) -> None:
        self._anywhere = anywhere
        super().__init__(**options)

    def init_poolmanager(self, *args: Any, **options: Any) -> None:
        """See HTTPAdapter."""
        super().init_poolmanager(*args, **options)
        if not self._anywhere:
            self.poolmanager.pool_classes_by_scheme = _POOLS

    def proxy_manager_for(self, *args: Any, **options: Any) -> PoolManager:
        """See HTTPAdapter."""
        manager: PoolManager = super().proxy_manager_for(*args, **options)
        if not self._anywhere:
            manager.pool_classes_by_scheme = _POOLS
        return manager

    def send(self, request: PreparedRequest, *args: Any, **options: Any) -> Response:
        """See HTTPAdapter. Raises Denied before anything is sent where a message must not reach."""
        if self._anywhere:
            return super().send(request, *args, **options)
        host = (urlsplit(request.url or "").hostname or "").rstrip(".")
        with suppress(socket.gaierror, UnicodeError):  # a name; this also reads numbers as the C library does: 0xA9FE…
            for *_, address in socket.getaddrinfo(host, None, flags=socket.AI_NUMERICHOST):
                check(str(address[0]))
        return super().send(request, *args, **options)


def check(address: str) -> None:
    """Raise Denied where messages must not reach."""
    found = ip_address(address.partition("%")[0])
    if isinstance(found, IPv6Address):
        found = found.ipv4_mapped or (IPv4Address(found.packed[-4:]) if found in _TRANSLATED else found)
    if any(found in network for network in _PRIVATE):
        raise Denied(
            f"{found} is an address at which machines find their own credentials: no artifact is read there "
            "(--allow-link-local)"
        )


class _Checked(HTTPConnection):
    """A connection whose end is looked at before anything is sent: names lead anywhere, and not twice to the same."""

    def _new_conn(self) -> socket.socket:
        made = super()._new_conn()
        try:
            if not self.proxy:
                check(made.getpeername()[0])
        except BaseException:
            made.close()
            raise
        return made


class _CheckedTls(_Checked, HTTPSConnection):
    pass


class _Pool(HTTPConnectionPool):
    ConnectionCls = _Checked


class _TlsPool(HTTPSConnectionPool):
    ConnectionCls = _CheckedTls


_POOLS = {"http": _Pool, "https": _TlsPool}
