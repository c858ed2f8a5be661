"""NVIDIA's management library: what it says of the cards, at one moment. Nothing else calls it, and nothing is set.

Its calls may take long, and those of a broken driver for ever: to be used in a thread that nobody waits for.
https://docs.nvidia.com/deploy/nvml-api/
"""

from __future__ import annotations

import ctypes
from collections.abc import Callable, Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass, field, replace
from typing import Any

from runner.errors import RunnerError

# XIDs after which a card has to be reset, or worse, and none that a program's own mistakes bring about:
# https://docs.nvidia.com/deploy/xid-errors/analyzing-xid-catalog.html
_SERIOUS_XIDS = frozenset({46, 48, 54, 61, 62, 64, 74, 79, 94, 95, 110, 119, 120, 123, 140, 143})


class NoDriver(RunnerError):
    """There is no NVIDIA driver on this machine."""


class Silent(RunnerError):
    """The driver is there, but does not answer as it should."""


@dataclass(frozen=True)
class Sight:
    """A card, or a MIG instance of one (``parent`` is the card's UUID then). Memory is in bytes.

    ``processes`` are those that compute, with the memory of each, where that is told; ``displayed`` is the memory of
    those that draw. ``instances`` is how many a split card may have, None when it is not split. ``uncorrected`` counts
    memory errors since the last reset. ``fault`` says what makes the card useless, ``error`` why it is not known just
    now; both go behind its name. ``placeholder``: it was never seen, so that the rest is made up.
    """

    uuid: str
    index: int
    name: str
    parent: str = ""
    instance: int = 0
    instances: int | None = None
    memory: int = 0
    used: int = 0
    displayed: int = 0
    capability: tuple[int, int] = (0, 0)
    processes: Mapping[int, int] = field(default_factory=dict)
    uncorrected: int = 0
    fault: str = ""
    error: str = ""
    placeholder: bool = False

    def __str__(self) -> str:
        place = f"GPU {self.index}" + (f", MIG instance {self.instance}" if self.parent else "")
        return f"{place} ({self.name.removeprefix('NVIDIA ')})"


@dataclass(frozen=True)
class Survey:
    """All cards, in the library's order, and the serious XIDs since the last survey, as (UUID of the card, XID)."""

    sights: tuple[Sight, ...]
    xids: tuple[tuple[str, int], ...] = ()


def load() -> Any:
    """Return the library's binding, which is large, if there is a driver. Raises NoDriver."""
    try:
        ctypes.CDLL("libnvidia-ml.so.1")
    except OSError:
        raise NoDriver("NVIDIA's driver is not installed") from None
    import pynvml  # noqa: PLC0415 -- 50 ms and 6 MB

    return pynvml


class Nvml:
    """The library, ready to be asked. ``binding`` is what ``load`` returns.

    Raises NoDriver, Silent.
    """

    def __init__(self, binding: Any) -> None:
        self._nvml = binding
        try:
            binding.nvmlInit()
            self._events = self._optional(binding.nvmlEventSetCreate, default=None)
        except binding.NVMLError as error:
            absent = (binding.NVML_ERROR_LIBRARY_NOT_FOUND, binding.NVML_ERROR_DRIVER_NOT_LOADED)
            if error.value in absent:
                raise NoDriver(f"NVIDIA's driver says: {error}") from error
            raise Silent(f"NVIDIA's driver says: {error}") from error
        self._seen: dict[int, list[Sight]] = {}
        self._listening: set[str] = set()

    def survey(self) -> Survey:
        """Look at all cards. Raises Silent when there is nothing to be learnt at all."""
        try:
            count = self._nvml.nvmlDeviceGetCount()
            sights = tuple(sight for index in range(count) for sight in self._look(index))
            return Survey(sights, tuple(self._xids()))
        except self._nvml.NVMLError as error:
            raise Silent(f"NVIDIA's driver says: {error}") from error

    def _look(self, index: int) -> list[Sight]:
        """Return a card and its MIG instances; one that cannot be looked at is told as it was, with the reason."""
        try:
            handle = self._nvml.nvmlDeviceGetHandleByIndex(index)
            card = self._card(index, handle)
            seen = self._seen[index] = [card, *self._parts(card, handle)]
        except self._nvml.NVMLError as error:
            lost = error.value in (self._nvml.NVML_ERROR_GPU_IS_LOST, self._nvml.NVML_ERROR_RESET_REQUIRED)
            known = self._seen.get(index, [Sight(f"unknown-{index}", index, "no name", placeholder=True)])
            why = f"cannot be reached: NVIDIA's driver says {str(error)!r}"
            return [replace(sight, fault=why if lost else "", error="" if lost else why) for sight in known]
        return seen

    def _card(self, index: int, handle: Any) -> Sight:
        nvml, ask = self._nvml, self._optional
        uuid = nvml.nvmlDeviceGetUUID(handle)
        self._listen(uuid, handle)
        mode = ask(nvml.nvmlDeviceGetMigMode, handle, default=[0, 0])
        return replace(
            self._place(handle, Sight(uuid, index, nvml.nvmlDeviceGetName(handle))),
            capability=ask(nvml.nvmlDeviceGetCudaComputeCapability, handle, default=(0, 0)),
            instances=self._places(handle) if mode[0] == nvml.NVML_DEVICE_MIG_ENABLE else None,
            uncorrected=ask(
                nvml.nvmlDeviceGetTotalEccErrors,
                handle,
                nvml.NVML_MEMORY_ERROR_TYPE_UNCORRECTED,
                nvml.NVML_VOLATILE_ECC,
                default=0,
            ),
            fault=self._fault(handle),
        )

    def _places(self, handle: Any) -> int:
        return int(self._optional(self._nvml.nvmlDeviceGetMaxMigDeviceCount, handle, default=0))

    def _parts(self, card: Sight, handle: Any) -> Iterator[Sight]:
        for number in range(card.instances or 0):
            try:
                part = self._nvml.nvmlDeviceGetMigDeviceHandleByIndex(handle, number)
            except self._nvml.NVMLError as error:
                if error.value in (self._nvml.NVML_ERROR_NOT_FOUND, self._nvml.NVML_ERROR_INVALID_ARGUMENT):
                    continue  # places need not be taken
                raise
            uuid, name = self._nvml.nvmlDeviceGetUUID(part), self._nvml.nvmlDeviceGetName(part)
            yield self._place(part, Sight(uuid, card.index, name, parent=card.uuid, instance=number))

    def _place(self, handle: Any, sight: Sight) -> Sight:
        """Add who uses it, and the memory."""
        nvml, ask = self._nvml, self._optional
        # The first version counts what the driver keeps for itself as used; old drivers know no other.
        memory = ask(nvml.nvmlDeviceGetMemoryInfo, handle, nvml.nvmlMemory_v2, default=None)
        memory = memory or ask(nvml.nvmlDeviceGetMemoryInfo, handle, default=None)
        # Drivers before 510 know only the second version, those before 450 neither.
        computing = self._listed(
            handle, nvml.nvmlDeviceGetComputeRunningProcesses_v3, nvml.nvmlDeviceGetComputeRunningProcesses_v2
        )
        drawing = self._listed(
            handle, nvml.nvmlDeviceGetGraphicsRunningProcesses_v3, nvml.nvmlDeviceGetGraphicsRunningProcesses_v2
        )
        processes = {each.pid: each.usedGpuMemory or 0 for each in computing}
        return replace(
            sight,
            memory=memory.total if memory else 0,
            used=memory.used if memory else 0,
            displayed=sum(each.usedGpuMemory or 0 for each in drawing if each.pid not in processes),
            processes=processes,
        )

    def _listed(self, handle: Any, *versions: Callable[..., list[Any]]) -> list[Any]:
        """Return what the first version of a function says that the driver knows; [] when it knows none."""
        answers = (self._optional(each, handle, default=None) for each in versions)
        return next((answer for answer in answers if answer is not None), [])

    def _fault(self, handle: Any) -> str:
        """Say what makes a card useless whoever uses it."""
        *_, failed = self._optional(self._nvml.nvmlDeviceGetRemappedRows, handle, default=(0, 0, 0, 0))
        return "has defect memory that could not be replaced" if failed else ""

    # Events

    def _listen(self, uuid: str, handle: Any) -> None:
        """Have a card's XIDs told; one of which they are not is as good, and is asked again."""
        if self._events is not None and uuid not in self._listening:
            with suppress(self._nvml.NVMLError):
                self._nvml.nvmlDeviceRegisterEvents(handle, self._nvml.nvmlEventTypeXidCriticalError, self._events)
                self._listening.add(uuid)

    def _xids(self) -> Iterator[tuple[str, int]]:
        for _ in range(1000 if self._listening else 0):
            try:
                event = self._nvml.nvmlEventSetWait_v2(self._events, 0)
                if event.eventData in _SERIOUS_XIDS:
                    yield self._nvml.nvmlDeviceGetUUID(event.device), int(event.eventData)
            except self._nvml.NVMLError:
                return  # there are no more, or their card is lost, which is told when it is looked at

    def _optional(self, function: Callable[..., Any], *arguments: Any, default: Any) -> Any:
        """Ask what some cards, drivers and users are not told."""
        nvml = self._nvml
        untold = (nvml.NVML_ERROR_NOT_SUPPORTED, nvml.NVML_ERROR_FUNCTION_NOT_FOUND, nvml.NVML_ERROR_NO_PERMISSION)
        try:
            return function(*arguments)
        except nvml.NVMLError as error:
            if error.value in untold:
                return default
            raise
