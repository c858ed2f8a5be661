"""Stores of objects, by the scheme of their URLs."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import replace

from runner.errors import MachineError
from runner.storage.base import AwsCredentials, BearerToken, Credentials, Denied, Location, Store, StoreOptions


def connect(
    location: Location,
    credentials: Credentials | None,
    options: StoreOptions,
    *,
    sleep: Callable[[float], None] = time.sleep,
) -> Store:
    """Return the store that ``location`` is in; nothing is asked of it yet. ``sleep`` is how it waits between tries.

    Raises Denied when ``credentials`` are not of the kind that the store takes, and MachineError for a store that this
    version cannot reach.
    """
    try:
        make = _STORES[location.scheme]
    except KeyError:
        known = ", ".join(f"{scheme}://" for scheme in _STORES)
        raise MachineError(
            f"{location.scheme}:// artifacts cannot be read by this version of the runner, only {known}"
        ) from None
    return make(location, credentials, options, sleep)


def _s3(
    location: Location, credentials: Credentials | None, options: StoreOptions, sleep: Callable[[float], None]
) -> Store:
    # Only attempts that use S3 pay for the import of an HTTP client (0.2 s).
    from runner.storage.s3 import S3Store  # noqa: PLC0415

    if not isinstance(credentials, AwsCredentials):
        found = "none" if credentials is None else "other credentials"
        raise Denied(
            f"{location} needs AWS credentials and the message has {found}: "
            "give a key pair, or two empty strings for anonymous access"
        )
    # Who names authorities, or a certificate of this machine's own, means TLS with all endpoints.
    tls = location.tls or bool(options.s3_ca or options.s3_cert)
    return S3Store(replace(location, tls=tls), credentials, options, sleep=sleep)


def _http(
    location: Location, credentials: Credentials | None, options: StoreOptions, sleep: Callable[[float], None]
) -> Store:
    from runner.storage.http import HttpStore  # noqa: PLC0415

    if not isinstance(credentials, AwsCredentials):
        return HttpStore(location, credentials, options, sleep=sleep)
    if credentials.anonymous:
        return HttpStore(location, None, options, sleep=sleep)
    raise Denied(f"{location} takes plain or jwt credentials and the message has AWS's: give others, or an s3:// URL")


def _gs(
    location: Location, credentials: Credentials | None, options: StoreOptions, sleep: Callable[[float], None]
) -> Store:
    from runner.storage.gcs import GcsStore  # noqa: PLC0415

    if isinstance(credentials, AwsCredentials) and credentials.anonymous:
        credentials = None
    if not isinstance(credentials, BearerToken | None):
        raise Denied(f"{location} needs a token (jwt) or no credentials, and the message has others")
    return GcsStore(location, credentials, options, sleep=sleep)


def _file(
    location: Location, _credentials: Credentials | None, options: StoreOptions, _sleep: Callable[[float], None]
) -> Store:
    from runner.storage.files import FileStore  # noqa: PLC0415

    return FileStore(location.bucket, options.file_roots)


_Make = Callable[[Location, Credentials | None, StoreOptions, Callable[[float], None]], Store]

_STORES: dict[str, _Make] = {"s3": _s3, "gs": _gs, "file": _file, "http": _http, "https": _http}
