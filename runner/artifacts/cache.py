"""Immutable artifacts on this machine's disk: fetched once, by one process, for all attempts of all runners.

The store is always asked, with the message's own credentials, which version of an object there is: who may not read it
there cannot read it here. Two things are kept. The object as it was stored, from which it can be unpacked any number of
times. And its unpacked tree, which is lent to one attempt at a time: moved into its directory, the attempt's own to do
with as it likes, and moved back at the end if nothing in it was touched. No attempt is given what stays in the cache.
"""

from __future__ import annotations

import hashlib
import logging
import secrets
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path

from runner.artifacts.budget import Budget
from runner.artifacts.cache_entries import About, CacheFailure, Entries, Entry
from runner.artifacts.copying import Copied, Digested, Kept
from runner.artifacts.trees import survey, tells_writes
from runner.errors import Unavailable
from runner.message.request_artifacts import Artifact
from runner.place import remove
from runner.storage.base import CHUNK, Reader, Store

log = logging.getLogger(__name__)

Receive = Callable[[Reader], None]
"""Fill the artifact's directory from its object, whose stream is read to its end."""


def fetch(artifact: Artifact, store: Store, receive: Receive) -> None:
    """Fetch an artifact from its store, without a cache."""
    with store.open(artifact.location.key) as stored:
        stream = Digested(stored.stream) if artifact.hash else stored.stream
        receive(stream)
        if isinstance(stream, Digested):
            stream.verify(artifact)


@dataclass(frozen=True)
class _Lent:
    """A tree in an attempt's directory, and the entry that it was or may become."""

    directory: Path
    identity: str
    about: About


class Cache:
    """The cache, for one attempt, whose own directory is ``scratch``.

    ``tell`` is called with the artifact's label, the object's name in the cache, and whether it was there. Without
    ``lending`` no trees are kept.
    """

    def __init__(
        self, entries: Entries, scratch: Path, tell: Callable[[str, str, bool], None], *, lending: bool = True
    ) -> None:
        self._entries, self._scratch, self._tell, self._lending = entries, scratch, tell, lending
        self._lent: list[_Lent] = []

    def fetch(self, artifact: Artifact, directory: Path, store: Store, *, budget: Budget, receive: Receive) -> None:
        """Fetch an immutable artifact into its empty directory, in whichever way is the fastest.

        Raises as the store and ``receive`` do, and Unavailable when an entry is removed just then.
        """
        etag = store.etag(artifact.location.key)
        if not etag:
            fetch(artifact, store, receive)  # it cannot be told from its later versions, or is missing
            return
        identity = _name(artifact, etag)
        spent = budget.spent
        with ExitStack() as stack:
            try:
                found = self._found(artifact, identity, directory, budget)
                if found is None:
                    stack.enter_context(self._entries.fetching(identity))
                    found = self._found(artifact, identity, directory, budget)
            except (CacheFailure, OSError) as error:
                log.warning("artifact %r is fetched without the cache: %s", artifact.label, error)
                fetch(artifact, store, receive)
                return
            if isinstance(found, Entry):
                digest = found.about.digest
                self._reread(artifact, found, receive)
            elif found is None:
                digest = self._download(artifact, (identity, etag), store, receive, release=stack.close)
        self._tell(artifact.label, identity, found is not None)
        if not isinstance(found, _Lent):
            self._lend(
                artifact, _Lent(directory, _tree(artifact, identity), About(digest, 0, "", budget.spent - spent))
            )

    def close(self) -> None:
        """Take back what was lent and not touched. Nothing that could write to it may be left."""
        for lent in self._lent:
            try:
                seen = survey(lent.directory)
                if seen.evidence == lent.about.evidence:
                    with self._entries.draft() as draft:
                        draft.reserve(seen.size)
                        lent.directory.rename(draft.content)
                        draft.keep(lent.identity, replace(lent.about, size=seen.size))
            except (CacheFailure, OSError) as error:
                log.debug("%s is not kept: %s", lent.directory, error)
        self._lent.clear()

    def _found(self, artifact: Artifact, identity: str, directory: Path, budget: Budget) -> Entry | _Lent | None:
        """Return the artifact's tree, already in its directory, or else its object."""
        for entry in self._right(artifact, _tree(artifact, identity)):
            if lent := self._borrow(entry, _tree(artifact, identity), directory):
                budget.spend(lent.about.spent)
                return lent
        for entry in self._right(artifact, identity):
            if self._whole(entry):
                return entry
            log.warning("%s is damaged, and dropped from the cache", entry.path)
            self._entries.drop(entry)
        return None

    def _whole(self, entry: Entry) -> bool:
        """Tell whether an object is as it was written; after a restart of the machine, by reading it once."""
        try:
            evidence = survey(entry.content).evidence
            if evidence == entry.about.evidence:
                return True
            with entry.content.open("rb") as file:
                stream = Digested(file)
                while stream.read(CHUNK):
                    self._entries.pause(0)
            if stream.digest == entry.about.digest:
                self._entries.vouch(entry, evidence)
        except OSError:
            return False
        return stream.digest == entry.about.digest

    def _right(self, artifact: Artifact, name: str) -> list[Entry]:
        """Return entries of that name; what the message knows a better digest of is fetched again."""
        found = self._entries.find(name)
        return [entry for entry in found if not artifact.hash or artifact.hash.lower() == entry.about.digest]

    def _borrow(self, entry: Entry, identity: str, directory: Path) -> _Lent | None:
        taken = self._scratch / f"lent-{secrets.token_hex(4)}"
        if not self._lending or not self._entries.take(entry, taken):
            return None
        tree = taken / entry.content.name
        try:
            if survey(tree).evidence == entry.about.evidence:
                tree.rename(directory)
                self._lent.append(lent := _Lent(directory, identity, entry.about))
                return lent
            log.warning("%s is not used: it was touched there, or the machine has been restarted", entry.path)
        except OSError as error:
            log.warning("%s cannot be used: %s", entry.path, error)
        finally:
            remove(taken)
        return None

    def _reread(self, artifact: Artifact, entry: Entry, receive: Receive) -> None:
        """Receive an object from the cache."""
        try:
            with entry.content.open("rb") as file:
                receive(Kept(file))
        except OSError as error:
            raise Unavailable(f"{artifact.label!r} cannot be read from the cache: {error.strerror}") from error

    def _download(
        self,
        artifact: Artifact,
        version: tuple[str, str],
        store: Store,
        receive: Receive,
        *,
        release: Callable[[], None],
    ) -> str:
        """Receive an object from its store, and keep it if there is room; ``release`` lets others go on without."""
        identity, etag = version
        with store.open(artifact.location.key) as stored, ExitStack() as drafting:
            stream = Copied(stored, release)
            if stored.etag == etag:
                try:
                    stream.begin(drafting.enter_context(self._entries.draft()))
                    drafting.callback(stream.close)
                except (CacheFailure, OSError) as error:
                    stream.give_up(error)
            receive(stream)
            stream.verify(artifact)
            stream.keep(identity)
        return stream.digest

    def _lend(self, artifact: Artifact, lent: _Lent) -> None:
        """Remember what a directory was like when the attempt got it."""
        try:
            if self._lending and self._trustworthy:
                about = replace(lent.about, evidence=survey(lent.directory).evidence)
                self._lent.append(replace(lent, about=about))
        except OSError as error:
            log.debug("artifact %r will not be kept unpacked: %s", artifact.label, error)

    @cached_property
    def _trustworthy(self) -> bool:
        """Trees can be moved to and fro, and their disk tells when they were touched."""
        return self._scratch.stat().st_dev == self._entries.root.stat().st_dev and tells_writes(self._scratch)


def _name(artifact: Artifact, etag: str) -> str:
    """Return the name of this very content, by all that says where it is: nobody can offer another's objects."""
    where = artifact.location
    parts = (where.scheme, where.host, where.bucket, where.key, where.tls, etag)
    return hashlib.sha256(repr(parts).encode(errors="surrogatepass")).hexdigest()[:32]


def _tree(artifact: Artifact, identity: str) -> str:
    """Return the name of what an attempt makes of an object."""
    return f"{identity}.{'unpacked' if artifact.unpack else 'file'}"
