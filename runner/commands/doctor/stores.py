"""Whether the stores can be read and written: that of ``--store``, and those of a message with its own credentials."""

from __future__ import annotations

import os
import posixpath
from collections import defaultdict
from collections.abc import Iterator, Mapping
from dataclasses import replace
from functools import partial

from runner.commands.doctor.base import Check, Finding, Subject, fail, ok, skip, warn
from runner.errors import ConfigError, RunnerError
from runner.message.request import Artifact
from runner.options.settings import Settings
from runner.retry import Patience
from runner.storage import connect
from runner.storage.base import AwsCredentials, Credentials, Location, NotFound, Store, StoreOptions, locate
from runner.supervisor.orders import options_of

# What is written to see whether that can be done; it stays there, for stores cannot remove anything.
_PROBE = "_studio-runner-doctor"
_SCHEMES = ("s3", "gs", "file", "http", "https")

Place = tuple[Location, Credentials | None]


def checks(subject: Subject) -> dict[str, Check]:
    """Return a check for each store that there is to look at."""
    found: dict[str, Check] = {"file-root": _file_roots}
    if subject.settings.store:
        found["store"] = _named
    if subject.settings.google_credentials:
        found["google"] = _google
    places: dict[Place, list[Artifact]] = defaultdict(list)
    for artifact in subject.wanted.artifacts.values() if subject.wanted else ():
        if artifact.location.scheme in _SCHEMES:
            places[artifact.location.sibling(""), artifact.credentials].append(artifact)
    for number, artifacts in enumerate(places.values(), 1):
        found["store of the message" + (f" {number}" if len(places) > 1 else "")] = partial(_of_message, artifacts)
    if not subject.settings.store and not subject.wanted:
        found["store"] = lambda _subject: [
            skip("no store is named: the artifacts of a message say where they are", "give --store URL or MESSAGE.json")
        ]
    return found


def _of_message(artifacts: list[Artifact], subject: Subject) -> Iterator[Finding]:
    """Read and write one bucket as an attempt would."""
    first = artifacts[0]
    store = connect(first.location.sibling(""), first.credentials, _options(subject.settings))
    missing = [each for each in artifacts if store.etag(each.location.key) is None]
    for artifact in missing:
        if not artifact.mutable or artifact.label == "workspace":
            yield fail(f"artifact {artifact.label!r} is not there: {artifact.location}", "store it, or submit again")
    mutable = next((each for each in artifacts if each.mutable), None)
    written = [_written(store, mutable.location)] if mutable else []
    there = [each.label for each in artifacts if each not in missing]
    if there or written:  # or else there may be no such bucket
        yield ok(f"{_shown(first.location)} can be read" + (f"; it has {', '.join(there)}" if there else ""))
    yield from written


def _named(subject: Subject) -> Iterator[Finding]:
    """Read and write the store of ``--store``."""
    url, environ = subject.settings.store.rstrip("/"), subject.environ
    try:
        location = locate(f"{url}/{_PROBE}", key=_PROBE)
    except ValueError as error:
        raise ConfigError(f"--store {error}") from error
    if location.scheme in ("http", "https"):
        raise ConfigError("--store must be s3://HOST[:PORT]/BUCKET, gs://BUCKET or file:///DIRECTORY")
    credentials = None
    if location.scheme == "s3":
        credentials = _aws(environ)
        region = location.region or credentials.region or "us-west-1"
        location = replace(location, region=region)
    options = _options(subject.settings)
    if location.scheme == "file" and not options.file_roots:
        options = replace(options, file_roots=(location.bucket,))
    store = connect(location.sibling(""), credentials, options)
    store.etag(location.key)
    written = _written(store, location)
    how = "anonymously" if isinstance(credentials, AwsCredentials) and credentials.anonymous else ""
    yield ok(" ".join(filter(None, (_shown(location), "can be read", how))))
    yield written


def _written(store: Store, beside: Location) -> Finding:
    """Write a few bytes beside an object. Raises NotFound when there is no such bucket, which nothing else tells."""
    key = posixpath.join(posixpath.dirname(beside.key), _PROBE)
    try:
        with store.create(key) as out:
            out.write(b"studio-runner doctor was here: this may be removed\n")
    except NotFound:
        raise
    except RunnerError as error:
        return fail(str(error))
    return ok(f"{_shown(beside)} can be written: {key} is there now")


def _google(subject: Subject) -> Iterator[Finding]:
    """Ask Google for a token with the runner's key file."""
    from runner.storage.gcs_tokens import identity  # noqa: PLC0415

    token = identity(None, _options(subject.settings)).token()
    yield ok(f"Google gives a token to {token.who}")


def _file_roots(subject: Subject) -> Iterator[Finding]:
    for root in subject.settings.file_root:
        if os.access(root, os.W_OK | os.X_OK):
            yield ok(f"file:// artifacts may be read and written below {root}")
        else:
            yield warn(f"file:// artifacts below {root} can only be read by this user", "change its owner or its mode")


def _options(given: Settings) -> StoreOptions:
    """One try only: somebody is waiting."""
    return replace(options_of(given, cache_size=0).of_stores, patience=Patience(0))


def _aws(environ: Mapping[str, str]) -> AwsCredentials:
    names = ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_SESSION_TOKEN", "AWS_DEFAULT_REGION")
    return AwsCredentials(*(environ.get(name, "") for name in names))


def _shown(location: Location) -> str:
    return str(location.sibling("")).rstrip("/")
