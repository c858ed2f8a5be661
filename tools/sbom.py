"""What is in the built file, for those who have to know: a bill of materials in CycloneDX's form.

The form: https://cyclonedx.org/docs/1.6/json/
"""

from __future__ import annotations

import json
import uuid
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from email.parser import HeaderParser
from pathlib import Path
from typing import Any
from urllib.parse import quote, unquote

LICENCES = {
    "Apache-2.0",
    "Apache-2.0 AND BSD-2-Clause",
    "Apache-2.0 OR BSD-3-Clause",
    "BSD-3-Clause",
    "ISC",
    "MIT",
    "MIT-0",
    "MPL-2.0",
    "PSF-2.0",
}
"""Those that somebody has read: what comes with another one stops the build, and is looked at."""

# Where a package does not say it in SPDX's words.
_SPOKEN = {"nvidia-ml-py": "BSD-3-Clause", "python-dateutil": "Apache-2.0 OR BSD-3-Clause"}


@dataclass(frozen=True, order=True)
class Wheel:
    """One that was installed into the file; ``licence`` is an SPDX expression."""

    name: str
    version: str
    file: str
    sha256: str
    licence: str

    @property
    def purl(self) -> str:
        """Its name in the world: https://github.com/package-url/purl-spec."""
        return f"pkg:pypi/{self.name}@{self.version}?file_name={quote(self.file)}"


def wheels_in(report: Mapping[str, Any], site: Path) -> list[Wheel]:
    """Read what pip has installed into a directory, and its report about that.

    The form: https://pip.pypa.io/en/stable/reference/installation-report/.
    """
    return [_wheel(each["download_info"], site) for each in report["install"]]


def _wheel(download: Mapping[str, Any], site: Path) -> Wheel:
    file = unquote(download["url"].rpartition("/")[2])
    # Not what the report says of it, for that depends on pip's age.
    metadata = HeaderParser().parsestr((site / f"{'-'.join(file.split('-')[:2])}.dist-info" / "METADATA").read_text())
    name = metadata["Name"].lower().replace("_", "-")
    licence = metadata["License-Expression"] or _SPOKEN.get(name) or metadata["License"]
    if licence not in LICENCES:
        raise SystemExit(f"{name} has the licence {licence!r}, which nobody has looked at: see tools/sbom.py")
    return Wheel(name, metadata["Version"], file, download["archive_info"]["hashes"]["sha256"], licence)


def written(version: str, sha256: str, wheels: Iterable[Wheel]) -> str:
    """Return the document about the file with this hash: the same for the same file."""
    contained = sorted(set(wheels))
    document = {
        "$schema": "http://cyclonedx.org/schema/bom-1.6.schema.json",
        "bomFormat": "CycloneDX",
        "specVersion": "1.6",
        "serialNumber": f"urn:uuid:{uuid.uuid5(uuid.NAMESPACE_OID, sha256)}",
        "version": 1,
        "metadata": {"component": _component("application", "studio-runner", version, "Apache-2.0", sha256)},
        "components": [
            {**_component("library", each.name, each.version, each.licence, each.sha256, each.purl), "purl": each.purl}
            for each in contained
        ],
        "dependencies": [{"ref": "studio-runner", "dependsOn": [each.purl for each in contained]}],
    }
    return json.dumps(document, indent=2) + "\n"


def _component(
    kind: str, name: str, version: str, licence: str, sha256: str, reference: str = "studio-runner"
) -> dict[str, Any]:
    return {
        "type": kind,
        "bom-ref": reference,
        "name": name,
        "version": version,
        "licenses": [{"expression": licence}],
        "hashes": [{"alg": "SHA-256", "content": sha256}],
    }
