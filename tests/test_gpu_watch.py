"""GPUs as a simulated library shows them: what is there, who uses it, what breaks; and a driver that hangs or fails."""

from __future__ import annotations

import inspect
import logging
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path

import pynvml
import pytest

from runner.loop import Loop
from runner.machine import nvml
from runner.machine.gpu_watch import GpuWatch
from runner.machine.gpus import Gpus, Grant, Wish
from runner.machine.nvml import NoDriver
from tests.servers.nvml import GIB, MIB, Device, Nvml

A100 = {"name": "NVIDIA A100-SXM4-40GB", "memory": 40536 * MIB, "capability": (8, 0)}
H100 = {"name": "NVIDIA H100 80GB HBM3", "memory": 81559 * MIB, "capability": (9, 0)}


class Machine:
    """A simulated machine, its ledger, and what looks after it; time passes only when the test says so."""

    def __init__(self, library: Nvml) -> None:
        self.library, self.now = library, 100.0
        self.loop, self.gpus = Loop(), Gpus()
        self.watch = GpuWatch(self.loop, self.gpus, lambda: nvml.Nvml(library), lambda: self.now)
        self.watch.begin(20.0)

    def look(self) -> None:
        """Have the cards looked at anew."""
        answers: list[bool] = []
        self.watch.ask(lambda: answers.append(True))
        self.until(lambda: answers)

    def until(self, true: Callable[[], object]) -> None:
        for _ in range(1000):
            if true():
                return
            self.loop.run_once(0.01)
            self.watch.tend()
        raise AssertionError("it never happened")

    @property
    def troubles(self) -> list[str]:
        return [card.trouble for card in self.gpus.cards]

    @property
    def slots(self) -> list[int]:
        return [card.slots for card in self.gpus.cards]

    def take(self, slots: int = 1) -> tuple[Grant, ...]:
        return self.gpus.reserve(Wish(slots))


@pytest.fixture
def machine(monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[..., Machine]]:
    """Make machines, on which no variable hides anything."""
    for name in ("CUDA_VISIBLE_DEVICES", "NVIDIA_VISIBLE_DEVICES"):
        monkeypatch.delenv(name, raising=False)
    made: list[Machine] = []

    def make(*devices: Device, **options: bool | int) -> Machine:
        made.append(Machine(Nvml(*devices, **options)))
        return made[-1]

    yield make
    for each in made:
        each.library.hang.set()
        each.loop.close()


# What is there


def test_the_cards_of_a_machine_are_found(machine: Callable[..., Machine]) -> None:
    mixed = machine(Device(), Device(**H100), Device(name="Tesla T4", memory=15109 * MIB, capability=(7, 5)))
    assert mixed.slots == [16, 56, 4]
    assert mixed.gpus.offered() == (
        "GPU 0 (Tesla V100-SXM2-16GB) with 16 slots and 15.8 GiB, GPU 1 (H100 80GB HBM3) with 56 slots and 79.6 GiB, "
        "GPU 2 (Tesla T4) with 4 slots and 14.8 GiB"
    )
    assert mixed.troubles == ["", "", ""]


def test_an_old_driver_that_knows_less_is_asked_less(machine: Callable[..., Machine]) -> None:
    missing = {
        "nvmlDeviceGetGraphicsRunningProcesses_v2": pynvml.NVML_ERROR_FUNCTION_NOT_FOUND,
        "nvmlDeviceRegisterEvents": pynvml.NVML_ERROR_NOT_SUPPORTED,
        "nvmlDeviceGetComputeRunningProcesses_v2": pynvml.NVML_ERROR_NO_PERMISSION,
    }
    old = machine(Device(uncorrected=None, fails=missing), old=True)
    assert (old.slots, old.troubles) == ([16], [""])


def test_an_old_driver_says_as_well_who_uses_a_card(machine: Callable[..., Machine]) -> None:
    old = machine(Device(processes={1: None}), Device(used=3 * GIB, drawing={1: 3 * GIB}), old=True)
    assert old.troubles == ["is used by others (process 1)", ""]


@pytest.mark.parametrize("name", [name for name in vars(Nvml) if name.startswith("nvml")])
def test_what_an_older_driver_lacks_is_the_librarys_error(monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    """Of the real binding: some functions that name no version raise what is no NVMLError then."""
    monkeypatch.setattr(pynvml, "nvmlLib", object())
    monkeypatch.setattr(pynvml, "_nvmlGetFunctionPointer_cache", {})
    function = getattr(pynvml, name)
    with pytest.raises(pynvml.NVMLError, match="Function Not Found"):
        function(*[0] * len(inspect.signature(function).parameters))


@pytest.mark.parametrize("error", [pynvml.NVML_ERROR_LIBRARY_NOT_FOUND, pynvml.NVML_ERROR_DRIVER_NOT_LOADED])
def test_without_a_driver_there_are_no_gpus_and_nobody_asks_again(
    machine: Callable[..., Machine], error: int, caplog: pytest.LogCaptureFixture
) -> None:
    bare = machine(error=error)
    assert "no GPU (NVIDIA's driver says: " in bare.gpus.offered()
    bare.now += 1000
    bare.look()
    assert bare.library.calls == ["nvmlInit"]
    assert not caplog.records


def test_the_library_is_not_loaded_where_there_is_none() -> None:
    code = (
        "import sys\nfrom runner.machine import nvml\ntry: nvml.load()\nexcept nvml.NoDriver as error: print(error)\n"
    )
    code += "assert 'pynvml' not in sys.modules"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    if not done.stdout:
        pytest.skip("there is a driver on this machine")
    assert (done.returncode, done.stdout) == (0, "NVIDIA's driver is not installed\n")


def test_instances_are_used_as_they_are_and_the_card_that_is_split_is_not(machine: Callable[..., Machine]) -> None:
    parts = [Device(f"NVIDIA A100-SXM4-40GB MIG {each}", f"MIG-{each}", memory) for each, memory in
             (("3g.20gb", 19968 * MIB), ("1g.5gb", 4864 * MIB))]  # fmt: skip
    split = machine(Device(**A100, instances=[parts[0], None, parts[1]]), Device(**A100), Device(**A100, instances=[]))
    assert [card.uuid[:5] for card in split.gpus.cards] == ["MIG-3", "MIG-1", "GPU-1"]
    assert split.slots == [12, 3, 24]
    assert [card.part for card in split.gpus.cards] == [True, True, False]
    assert split.gpus.cards[1].name == "GPU 0, MIG instance 2 (A100-SXM4-40GB MIG 1g.5gb)"
    assert [grant.uuid for grant in split.take(2)] == ["MIG-1g.5gb"]
    changed = {call for call in split.library.calls if "Set" in call or "Create" in call or "Reset" in call}
    assert changed == {"nvmlEventSetCreate", "nvmlEventSetWait_v2"}


def test_what_a_split_card_tells_of_its_instances_counts_once(machine: Callable[..., Machine]) -> None:
    processes: dict[int, int | None] = {os.getpid(): 3 * GIB}
    part = Device("MIG 3g.20gb", "MIG-a", 19968 * MIB, processes=processes)
    one = machine(Device(**A100, instances=[part], processes=processes))
    assert one.watch.memory_of([os.getpid()]) == 3 * GIB


def test_a_split_card_without_instances_is_told(machine: Callable[..., Machine]) -> None:
    assert "MIG is on, but there are no instances" in machine(Device(**A100, instances=[])).gpus.offered()


def test_hidden_cards_are_not_there(
    machine: Callable[..., Machine], monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "1,5")
    three = machine(Device(), Device(), Device())
    three.look()
    assert [card.name[:5] for card in three.gpus.cards] == ["GPU 1"]
    assert caplog.text.count("CUDA_VISIBLE_DEVICES=5: there is no such GPU") == 1
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "7")
    three.look()
    assert "VISIBLE_DEVICES hides all" in three.gpus.offered()


# Who uses it


def test_a_card_that_others_compute_on_is_not_given_out_until_they_go(
    machine: Callable[..., Machine], caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    two = machine(Device(processes={1: GIB}, used=GIB), Device())
    assert two.troubles == ["is used by others (process 1)", ""]
    assert [grant.uuid[:5] for grant in two.take()] == ["GPU-1"]
    assert not two.gpus.fits(Wish(16)), "it is waited for"
    assert two.gpus.could_ever(Wish(16))
    two.library.devices[0].processes, two.library.devices[0].used = {}, 0
    two.look()
    assert two.troubles == ["", ""]
    assert "GPU 0 (Tesla V100-SXM2-16GB) can be given out again" in caplog.text


def test_memory_in_use_shows_who_cannot_be_seen(machine: Callable[..., Machine]) -> None:
    two = machine(Device(used=4 * GIB), Device(used=200 * MIB))
    assert two.troubles == ["is used by others (4 GiB of its memory)", ""]


def test_a_desktop_on_a_card_is_nobody_who_computes(machine: Callable[..., Machine]) -> None:
    one = machine(Device(used=3 * GIB, drawing={1: 3 * GIB}))
    assert one.troubles == [""]


def test_the_desktop_of_windows_is_nobody_either(
    machine: Callable[..., Machine], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """In WSL 2 the driver does not name its processes."""
    monkeypatch.setattr("runner.machine.gpu_watch._WINDOWS", tmp_path)
    untold = dict.fromkeys(
        (f"nvmlDeviceGet{kind}RunningProcesses_v{version}" for kind in ("Compute", "Graphics") for version in (2, 3)),
        pynvml.NVML_ERROR_NOT_SUPPORTED,
    )
    assert machine(Device(used=3 * GIB, fails=untold)).troubles == [""]


def test_cudas_server_that_shares_a_card_is_nobody_by_itself(
    machine: Callable[..., Machine], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("runner.machine.gpu_watch.tree", lambda _pid: [])
    code = "import ctypes\n{}ctypes.CDLL(None).prctl(15, b'nvidia-cuda-mps-server')\nprint(flush=True)\ninput()"
    for hidden, trouble in (("", ""), ("#", "is used by others")):
        program = [sys.executable, "-c", code.format(hidden)]
        with subprocess.Popen(
            program, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL
        ) as other:
            assert other.stdout
            assert other.stdin
            other.stdout.readline()
            one = machine(Device(processes={other.pid: 5 * GIB}, used=5 * GIB))
            assert one.troubles[0].startswith(trouble)
            assert bool(one.troubles[0]) == bool(trouble)
            other.stdin.close()


def test_our_own_experiments_are_not_others(machine: Callable[..., Machine]) -> None:
    with subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE) as experiment:
        one = machine(Device())
        grants = one.take()
        # As this process sees it, and as the driver counts it outside of a container.
        one.library.devices[0].processes = {experiment.pid: GIB, 2**22 + 7: None}
        one.library.devices[0].used = 12 * GIB
        one.look()
        assert one.troubles == [""]
        assert one.watch.memory_of([experiment.pid, os.getppid()]) == GIB
        one.library.devices[0].processes |= {os.getppid(): GIB}
        one.look()
        assert one.troubles == [f"is used by others, too (process {os.getppid()})"]
        one.library.devices[0].processes = {}
        one.gpus.release(grants)
        one.look()
        assert one.troubles == ["is used by others (12 GiB of its memory)"], "what an experiment has left there"
        assert experiment.stdin
        experiment.stdin.close()


def test_a_card_that_an_experiment_uses_without_having_been_given_it_is_not_given_to_another(
    machine: Callable[..., Machine],
) -> None:
    """Scripts set CUDA_VISIBLE_DEVICES themselves."""
    with subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE) as experiment:
        two = machine(Device(), Device())
        [given] = two.take()
        two.library.devices[1].processes = {experiment.pid: GIB}
        two.look()
        assert given.uuid == two.gpus.cards[0].uuid
        assert two.troubles == ["", f"is used by an experiment that was not given it (process {experiment.pid})"]
        assert experiment.stdin
        experiment.stdin.close()


def test_a_card_that_is_given_out_while_it_is_looked_at_is_used_by_right(machine: Callable[..., Machine]) -> None:
    with subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE) as experiment:
        one = machine(Device())
        one.library.hang.clear()
        answers: list[bool] = []
        one.watch.ask(lambda: answers.append(True))
        one.take()
        one.library.devices[0].processes = {experiment.pid: GIB}
        one.library.hang.set()
        one.until(lambda: answers)
        assert one.troubles == [""]
        assert experiment.stdin
        experiment.stdin.close()


def test_what_an_experiment_leaves_for_a_moment_costs_no_more_than_a_moment(machine: Callable[..., Machine]) -> None:
    one = machine(Device())
    grants = one.take()
    one.library.devices[0].used = 12 * GIB
    one.look()
    one.gpus.release(grants)
    one.look()
    assert one.troubles != [""]
    one.library.devices[0].used = 0
    one.now += 11
    one.until(lambda: one.troubles == [""])


# What breaks


@pytest.mark.parametrize(
    ("change", "told"),
    [
        ({"uncorrected": 3}, "had 2 uncorrectable memory errors"),
        ({"xids": [13, 79, 48]}, "failed with XID 79"),
        ({"remap_failed": 1}, "has defect memory that could not be replaced"),
        ({"fails": {"all": pynvml.NVML_ERROR_GPU_IS_LOST}}, "cannot be reached: NVIDIA's driver says 'GPU is lost'"),
        ({"fails": {"nvmlDeviceGetName": pynvml.NVML_ERROR_RESET_REQUIRED}}, "'GPU requires restart'"),
    ],
)
def test_a_card_that_breaks_is_given_out_no_more_while_the_others_go_on(
    machine: Callable[..., Machine], caplog: pytest.LogCaptureFixture, change: dict[str, object], told: str
) -> None:
    two = machine(Device(**A100, uncorrected=1), Device(**A100))
    first, second = two.take(24), two.take(24)
    assert two.watch.fault(first) == ""
    for name, value in change.items():
        setattr(two.library.devices[0], name, value)
    two.look()
    fault = two.watch.fault(first)
    assert fault.startswith("GPU 0 (A100-SXM4-40GB) ") and told in fault
    assert two.watch.fault(second) == ""
    two.gpus.release(first)
    two.gpus.release(second)
    assert [grant.uuid[:5] for grant in two.take(24)] == ["GPU-1"]
    assert not two.gpus.could_ever(Wish(48))
    two.look()
    assert caplog.text.count(told) == 1, "it is told once"
    assert "Reset or replace it" in caplog.text
    two.library.devices[0] = Device(**A100, uuid=two.library.devices[0].uuid)
    two.look()
    assert two.gpus.cards[0].broken, "nobody has said that it is well"


def test_a_card_that_vanishes_broke(machine: Callable[..., Machine]) -> None:
    two = machine(Device(), Device())
    held = two.take(16)
    del two.library.devices[0]
    two.look()
    assert two.watch.fault(held) == "GPU 0 (Tesla V100-SXM2-16GB) is gone"


def test_the_other_cards_keep_their_numbers_when_one_vanishes(
    machine: Callable[..., Machine], monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "0,1")
    three = machine(Device(), Device(), Device())
    del three.library.devices[0]
    three.look()
    assert sorted(card.uuid[:5] for card in three.gpus.cards) == ["GPU-0", "GPU-1"], "the third one may be another's"
    three.library.devices = three.library.devices[1:]
    three.look()
    assert [card.broken for card in three.gpus.cards] == [True, True]
    assert "there is no such GPU" not in caplog.text


def test_the_mistakes_of_programs_break_no_card(machine: Callable[..., Machine]) -> None:
    one = machine(Device())
    one.library.devices[0].xids = [13, 31, 43, 45, 109, 63]
    one.look()
    assert one.troubles == [""]
    assert one.library.devices[0].xids == []


def test_errors_from_before_the_start_and_resets_break_no_card(machine: Callable[..., Machine]) -> None:
    one = machine(Device(uncorrected=5))
    one.library.devices[0].uncorrected = 0
    one.look()
    assert one.troubles == [""]


def test_a_broken_card_breaks_its_instances(machine: Callable[..., Machine]) -> None:
    one = machine(Device(**A100, instances=[Device("MIG 3g.20gb", "MIG-a", 19968 * MIB)]))
    grants = one.take()
    one.library.devices[0].xids = [94]
    one.look()
    assert "failed with XID 94" in one.watch.fault(grants)
    assert one.gpus.cards[0].broken


def test_the_lost_card_of_an_instance_is_told(machine: Callable[..., Machine]) -> None:
    one = machine(Device(**A100, instances=[Device("MIG 3g.20gb", "MIG-a", 19968 * MIB)]))
    grants = one.take()
    one.library.devices[0].fails = {"all": pynvml.NVML_ERROR_GPU_IS_LOST}
    one.look()
    assert "GPU is lost" in one.watch.fault(grants)
    assert [(card.uuid, card.broken) for card in one.gpus.cards] == [("MIG-a", True)]


def test_a_card_whose_errors_could_not_be_listened_to_at_first_is_listened_to_later(
    machine: Callable[..., Machine],
) -> None:
    one = machine(Device(fails={"nvmlDeviceRegisterEvents": pynvml.NVML_ERROR_UNKNOWN}))
    assert one.troubles == [""], "it can be used"
    one.library.devices[0].fails = {}
    one.look()
    one.library.devices[0].xids = [79]
    one.look()
    assert one.troubles == ["failed with XID 79"]


# The driver itself


def test_one_card_that_cannot_be_looked_at_is_left_out_until_it_can(machine: Callable[..., Machine]) -> None:
    two = machine(Device(), Device())
    two.library.devices[0].fails = {"nvmlDeviceGetTotalEccErrors": pynvml.NVML_ERROR_UNKNOWN}
    two.look()
    assert two.troubles == ["cannot be reached: NVIDIA's driver says 'Unknown Error'", ""]
    assert two.watch.fault([Grant(two.gpus.cards[0].uuid, 1, 1, ())]) == ""
    two.library.devices[0].fails = {}
    two.look()
    assert two.troubles == ["", ""]


def test_the_instances_of_a_card_that_cannot_be_looked_at_are_waited_for(machine: Callable[..., Machine]) -> None:
    one = machine(Device(**A100, instances=[Device("MIG 3g.20gb", "MIG-a", 19968 * MIB)]))
    one.library.devices[0].fails = {"nvmlDeviceGetMigMode": pynvml.NVML_ERROR_UNKNOWN}
    one.look()
    assert one.troubles == ["cannot be reached: NVIDIA's driver says 'Unknown Error'"]
    assert one.gpus.could_ever(Wish(1))
    one.library.devices[0].fails = {}
    one.look()
    assert one.troubles == [""]


def test_a_driver_that_fails_costs_the_gpus_and_one_warning_until_it_works(
    machine: Callable[..., Machine], caplog: pytest.LogCaptureFixture
) -> None:
    one = machine(Device())
    one.library.error = pynvml.NVML_ERROR_UNKNOWN
    one.look()
    one.look()
    assert not one.gpus.fits(Wish(1))
    assert one.gpus.could_ever(Wish(1))
    assert caplog.text.count("no GPU is given out: NVIDIA's driver says: Unknown Error") == 1
    one.library.error = 0
    one.look()
    assert one.gpus.fits(Wish(1))


def test_a_driver_that_fails_at_the_start_is_asked_again(machine: Callable[..., Machine]) -> None:
    one = machine(Device(), error=pynvml.NVML_ERROR_UNKNOWN)
    assert "no GPU (NVIDIA's driver says: Unknown Error)" in one.gpus.offered()
    one.library.error = 0
    one.now += 11
    one.until(lambda: one.gpus.fits(Wish(1)))


def test_a_driver_that_hangs_stops_nothing(machine: Callable[..., Machine], caplog: pytest.LogCaptureFixture) -> None:
    one = machine(Device())
    one.library.hang.clear()
    answers: list[bool] = []
    one.watch.ask(lambda: answers.append(True))
    for _ in range(5):
        one.now += 10
        one.watch.tend()
        one.loop.run_once(0)
    assert not one.gpus.fits(Wish(1))
    assert caplog.text.count("NVIDIA's driver has not answered for 30 s") == 1
    assert not answers
    one.library.hang.set()
    one.until(lambda: one.gpus.fits(Wish(1)))
    assert answers


def test_the_start_does_not_wait_for_a_driver_that_hangs(monkeypatch: pytest.MonkeyPatch) -> None:
    library, times = Nvml(Device()), iter(range(0, 1000, 7))
    library.hang.clear()
    with closing(Loop()) as loop:
        gpus = Gpus()
        watch = GpuWatch(loop, gpus, lambda: nvml.Nvml(library), lambda: float(next(times)))
        monkeypatch.setattr(loop, "run_once", lambda _timeout: None)
        watch.begin(20.0)
        library.hang.set()
        assert gpus.offered() == "no GPU (NVIDIA's driver has not answered yet)"


def test_cards_are_looked_at_every_ten_seconds_and_not_more_often(machine: Callable[..., Machine]) -> None:
    one = machine(Device())
    for _ in range(100):
        one.now += 0.25
        one.watch.tend()
        one.loop.run_once(0.005)
    one.until(lambda: one.library.calls.count("nvmlDeviceGetCount") >= 2)
    assert one.library.calls.count("nvmlDeviceGetCount") <= 3


def test_without_a_library_every_question_is_answered_at_once() -> None:
    with closing(Loop()) as loop:
        watch = GpuWatch(loop, Gpus(absent="--cpu-only is set"), None, lambda: 0.0)
        watch.begin(20.0)
        watch.tend()
        answers: list[bool] = []
        watch.ask(lambda: answers.append(True))
        assert answers
        assert watch.fault([]) == ""


def test_no_driver_is_an_error_of_its_own() -> None:
    with pytest.raises(NoDriver):
        nvml.Nvml(Nvml(error=pynvml.NVML_ERROR_DRIVER_NOT_LOADED))
