"""NVIDIA's cards, as the runner would share them out."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

from runner.commands.doctor.base import Finding, Subject, fail, ok, skip, warn
from runner.loop import Loop
from runner.machine import nvml, visible
from runner.machine.gpu_watch import GpuWatch
from runner.machine.gpus import Gpus

# How long the driver may take, in seconds: it may have to wake up its cards first.
_PATIENCE = 15.0
_VERSION = Path("/sys/module/nvidia/version")
# What is there when there is a driver, whatever has become of its library.
_TRACES = (_VERSION, Path("/dev/nvidiactl"))


def cards(subject: Subject) -> Iterator[Finding]:
    """Say which cards there are, how many slots each has, and why one is not given out."""
    ledger = ledger_of(subject)
    driver = f"NVIDIA's driver {_VERSION.read_text().strip()}" if _VERSION.exists() else "NVIDIA's driver"
    if not ledger.cards:
        there = any(trace.exists() for trace in _TRACES) and not _forbidden(subject)
        told = f"experiments get no GPUs: {ledger.absent}"
        yield fail(told, "see nvidia-smi, and dmesg") if there else skip(told)
    for card in ledger.cards:
        if card.broken:
            yield fail(f"{card} {card.trouble}: {driver}", "see nvidia-smi -q, and dmesg; reset or replace it")
        elif card.trouble:
            yield warn(f"{card} {card.trouble}, and is not given out", "see nvidia-smi")
        else:
            yield ok(f"{card} has {card.size}: {driver}")


def ledger_of(subject: Subject) -> Gpus:
    """Return the cards that there are to give."""
    ledger = Gpus(absent=_forbidden(subject))
    if not ledger.absent:
        with closing(Loop()) as loop:
            GpuWatch(loop, ledger, lambda: nvml.Nvml(nvml.load()), time.monotonic).begin(_PATIENCE)
    return ledger


def _forbidden(subject: Subject) -> str:
    if subject.settings.cpu_only:
        return "--cpu-only is set"
    name = visible.forbidden(subject.environ)
    return f"{name} hides all" if name else ""
