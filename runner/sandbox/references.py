"""References of container images: which the operator allows, and how they are written down."""

from __future__ import annotations

import re
from collections.abc import Iterable
from urllib.parse import unquote

from runner.errors import MachineError
from runner.message.request_artifacts import Artifact

LABEL = "_singularity"
"""The artifact whose presence says that an experiment runs in a container (protocol section 5)."""

# What singularity fetches and converts by itself; everything else is an object in a store of ours.
_PULLED = ("docker", "dockerhub", "library", "shub")


def reference(artifact: Artifact) -> str:
    """Return an image's reference as it is compared: ``dockerhub://`` is another word for ``docker://``."""
    where = artifact.location
    if where.scheme in ("http", "https"):
        return f"{where.scheme}://{where.host}/{where.key}"  # with its query, which may name another object
    return _one_word(f"{where.scheme}://{where.key}" if pulled(artifact) else str(where))


def pulled(artifact: Artifact) -> bool:
    """Tell whether the program that runs containers has to fetch it."""
    return artifact.location.scheme in _PULLED


def check(artifact: Artifact, allowed: Iterable[str]) -> None:
    """Raise MachineError unless the operator allows the image, by its reference or by its beginning and a ``*``."""
    wanted = reference(artifact)
    # A store may take "a/../b" for "b", which is another place.
    plain = not {".", ".."} & set(unquote(wanted).split("/"))
    if not (plain and any(_matches(wanted, each) for each in allowed)):
        raise MachineError(
            f"this runner does not run containers of {artifact.qualified}: its operator can allow that, with "
            "--singularity-allow"
        )


def _matches(wanted: str, allowed: str) -> bool:
    allowed = _one_word(allowed)
    return wanted.startswith(allowed[:-1]) if allowed.endswith("*") else wanted == allowed


def _one_word(written: str) -> str:
    return re.sub("^dockerhub://", "docker://", written)
