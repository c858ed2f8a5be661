"""A machine's GPUs, simulated: what the library ``pynvml`` has of them, with the same functions, errors and constants.

Run as a program, it is studio-runner on such a machine, which the JSON file that ``SIMULATED_NVML`` names describes:

    [{"name": "Tesla V100", "memory_gib": 16, "capability": [7, 0], "processes": {"1": 5}, "xids": [79]}]
"""

from __future__ import annotations

import json
import os
import sys
import threading
from dataclasses import dataclass, field
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pynvml

GIB = 2**30
MIB = 2**20


@dataclass
class Device:
    """A card, or a MIG instance of one, for tests to play with.

    ``fails`` maps the name of a function to the number of the error that it raises.
    """

    name: str = "Tesla V100-SXM2-16GB"
    uuid: str = ""
    memory: int = 16160 * MIB
    used: int = 0
    reserved: int = 400 * MIB
    capability: tuple[int, int] = (7, 0)
    processes: dict[int, int | None] = field(default_factory=dict)
    drawing: dict[int, int | None] = field(default_factory=dict)
    uncorrected: int | None = 0
    remap_failed: int = 0
    instances: list[Device | None] | None = None
    xids: list[int] = field(default_factory=list)
    listened: bool = False
    fails: dict[str, int] = field(default_factory=dict)


class Nvml:
    """Stands in for the module. ``hang`` is waited for by every look at the cards."""

    def __init__(self, *devices: Device, old: bool = False, error: int = 0) -> None:
        self.devices = list(devices)
        self.old, self.error = old, error
        self.hang = threading.Event()
        self.hang.set()
        self.calls: list[str] = []
        for number, device in enumerate(devices):
            device.uuid = device.uuid or f"GPU-{number}0000000-aaaa-bbbb-cccc-dddddddddddd"

    def __getattr__(self, name: str) -> Any:
        """All the constants and errors are the library's own."""
        if name.startswith(("NVML", "nvmlEventType", "nvmlMemory_v2")):
            return getattr(pynvml, name)
        raise AttributeError(f"the simulated library has no {name}")

    def _enter(self, function: str, device: Device | None = None) -> None:
        self.calls.append(function)
        if self.error:
            raise pynvml.NVMLError(self.error)
        if device and (error := device.fails.get(function) or device.fails.get("all")):
            raise pynvml.NVMLError(error)

    def _must_be_new(self) -> None:
        if self.old:
            raise pynvml.NVMLError(pynvml.NVML_ERROR_FUNCTION_NOT_FOUND)

    def nvmlInit(self) -> None:
        self._enter("nvmlInit")

    def nvmlDeviceGetCount(self) -> int:
        self._enter("nvmlDeviceGetCount")
        self.hang.wait()
        return len(self.devices)

    def nvmlDeviceGetHandleByIndex(self, index: int) -> Device:
        self._enter("nvmlDeviceGetHandleByIndex", self.devices[index])
        return self.devices[index]

    def nvmlDeviceGetUUID(self, device: Device) -> str:
        self._enter("nvmlDeviceGetUUID", device)
        return device.uuid

    def nvmlDeviceGetName(self, device: Device) -> str:
        self._enter("nvmlDeviceGetName", device)
        return device.name

    def nvmlDeviceGetMemoryInfo(self, device: Device, version: int | None = None) -> Any:
        self._enter("nvmlDeviceGetMemoryInfo", device)
        if version is None:
            return SimpleNamespace(total=device.memory, used=device.used + device.reserved)
        self._must_be_new()
        return SimpleNamespace(total=device.memory, used=device.used, reserved=device.reserved)

    def nvmlDeviceGetCudaComputeCapability(self, device: Device) -> tuple[int, int]:
        self._enter("nvmlDeviceGetCudaComputeCapability", device)
        return device.capability

    def nvmlDeviceGetMigMode(self, device: Device) -> list[int]:
        self._enter("nvmlDeviceGetMigMode", device)
        if device.capability < (8, 0):
            raise pynvml.NVMLError(pynvml.NVML_ERROR_NOT_SUPPORTED)
        return [int(device.instances is not None)] * 2

    def nvmlDeviceGetMaxMigDeviceCount(self, device: Device) -> int:
        self._enter("nvmlDeviceGetMaxMigDeviceCount", device)
        return 7

    def nvmlDeviceGetMigDeviceHandleByIndex(self, device: Device, number: int) -> Device:
        self._enter("nvmlDeviceGetMigDeviceHandleByIndex", device)
        instances = device.instances or []
        found = instances[number] if number < len(instances) else None
        if found is None:
            raise pynvml.NVMLError(pynvml.NVML_ERROR_NOT_FOUND)
        return found

    def nvmlDeviceGetComputeRunningProcesses_v3(self, device: Device) -> list[Any]:
        self._enter("nvmlDeviceGetComputeRunningProcesses_v3", device)
        self._must_be_new()
        return _listed(device.processes)

    def nvmlDeviceGetComputeRunningProcesses_v2(self, device: Device) -> list[Any]:
        self._enter("nvmlDeviceGetComputeRunningProcesses_v2", device)
        return _listed(device.processes)

    def nvmlDeviceGetGraphicsRunningProcesses_v3(self, device: Device) -> list[Any]:
        self._enter("nvmlDeviceGetGraphicsRunningProcesses_v3", device)
        self._must_be_new()
        return _listed(device.drawing)

    def nvmlDeviceGetGraphicsRunningProcesses_v2(self, device: Device) -> list[Any]:
        self._enter("nvmlDeviceGetGraphicsRunningProcesses_v2", device)
        return _listed(device.drawing)

    def nvmlDeviceGetTotalEccErrors(self, device: Device, kind: int, counter: int) -> int:
        self._enter("nvmlDeviceGetTotalEccErrors", device)
        assert (kind, counter) == (pynvml.NVML_MEMORY_ERROR_TYPE_UNCORRECTED, pynvml.NVML_VOLATILE_ECC)
        if device.uncorrected is None:
            raise pynvml.NVMLError(pynvml.NVML_ERROR_NOT_SUPPORTED)
        return device.uncorrected

    def nvmlDeviceGetRemappedRows(self, device: Device) -> tuple[int, int, int, int]:
        self._enter("nvmlDeviceGetRemappedRows", device)
        if device.capability < (8, 0):
            raise pynvml.NVMLError(pynvml.NVML_ERROR_NOT_SUPPORTED)
        return 0, 0, 0, device.remap_failed

    def nvmlEventSetCreate(self) -> object:
        self._enter("nvmlEventSetCreate")
        return self

    def nvmlDeviceRegisterEvents(self, device: Device, kinds: int, events: object) -> None:
        self._enter("nvmlDeviceRegisterEvents", device)
        assert (kinds, events) == (pynvml.nvmlEventTypeXidCriticalError, self)
        device.listened = True

    def nvmlEventSetWait_v2(self, events: object, milliseconds: int) -> Any:
        self._enter("nvmlEventSetWait_v2")
        assert (events, milliseconds) == (self, 0)
        for device in self.devices:
            if device.listened and device.xids:
                return SimpleNamespace(device=device, eventType=8, eventData=device.xids.pop(0))
        raise pynvml.NVMLError(pynvml.NVML_ERROR_TIMEOUT)


def _listed(processes: dict[int, int | None]) -> list[Any]:
    return [SimpleNamespace(pid=pid, usedGpuMemory=used) for pid, used in processes.items()]


class FromFile(Nvml):
    """A machine that a file describes, which may change."""

    def __init__(self, path: Path) -> None:
        super().__init__()
        self._path = path

    def nvmlDeviceGetCount(self) -> int:
        known = {device.uuid: device for device in self.devices}
        self.devices = []
        for number, told in enumerate(json.loads(self._path.read_text())):
            uuid = f"GPU-{number}"
            device = known.get(uuid) or Device(uuid=uuid)
            xids = told.pop("xids", [])
            device.xids += xids[getattr(device, "heard", 0) :]
            device.heard = len(xids)  # type: ignore[attr-defined]
            device.memory = round(told.pop("memory_gib", 16) * GIB)
            device.processes = {int(pid): used for pid, used in told.pop("processes", {}).items()}
            device.capability = tuple(told.pop("capability", (7, 0)))
            for name, value in told.items():
                setattr(device, name, value)
            self.devices.append(device)
        return super().nvmlDeviceGetCount()


if __name__ == "__main__":
    from runner import cli
    from runner.machine import nvml

    nvml.load = lambda: FromFile(Path(os.environ["SIMULATED_NVML"]))
    sys.exit(cli.main())
