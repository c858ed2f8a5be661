"""Let atheris look for inputs that reach new code: ``python -m tests.fuzz.guided HARNESS [OPTION OF LIBFUZZER...]``.

Needs ``pip install atheris``. What it finds lies in the working directory, what it has learned in ``corpus``.
"""

from __future__ import annotations

import hashlib
import sys
from pathlib import Path

import atheris

with atheris.instrument_imports(include=["runner"]):
    from tests.fuzz.harnesses import HARNESSES

_OPTIONS = ("-max_len=65536", "-timeout=2", "-rss_limit_mb=600")


def main() -> None:
    """Begin with the harness's seeds, and go on until something is found."""
    name, *options = sys.argv[1:]
    harness = HARNESSES[name]
    corpus = Path(__file__).parent / "corpus" / name
    corpus.mkdir(parents=True, exist_ok=True)
    for seed in harness.mutator.seeds:
        (corpus / hashlib.sha256(seed).hexdigest()[:16]).write_bytes(seed)
    atheris.Setup([sys.argv[0], str(corpus), *_OPTIONS, *options], harness.check)
    with harness.around():
        atheris.Fuzz()


if __name__ == "__main__":
    main()
