"""The pages that users read, and the commands that stand in them."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
OURS = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
EXAMPLES = sorted((ROOT / "examples").rglob("*.md"))
PAGES = [*OURS, ROOT / "CHANGELOG.md", *EXAMPLES]


def named(page: Path) -> str:
    return str(page.relative_to(ROOT))


def lines_of_code(page: Path) -> Iterator[str]:
    """Yield the lines of a page's blocks of code, those that go on after a backslash as one."""
    indented, fenced = r"^(?: {4}| {7,}).*\n", r"^ *```.*\n((?:.*\n)*?) *```$"
    text = page.read_text()
    blocks = [each[0] for each in re.finditer(indented, text, re.MULTILINE)]
    blocks += [each[1] for each in re.finditer(fenced, text, re.MULTILINE)]
    for line in re.sub(r"\\\n\s*", " ", "".join(blocks)).splitlines():
        yield line.strip()


def commands(page: Path) -> Iterator[tuple[str, str]]:
    """Yield each line that starts our program, and what stands after the program's name."""
    for line in lines_of_code(page):
        if found := re.match(r"(?:[A-Z_]+=\S+ )*(?:\./|python3 )studio-runner\.pyz (.*)", line):
            yield line, found[1]
