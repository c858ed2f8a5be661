"""Experiments on GPUs: a runner as its users start it, on a machine whose cards are simulated."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.e2e.harness import Runner, Workplace

ROOT = Path(__file__).resolve().parent.parent.parent
SHOW = "import os\nprint('cards:', os.environ['CUDA_VISIBLE_DEVICES'], os.environ['NVIDIA_VISIBLE_DEVICES'])\n"
NEEDS = {"cpus": 1, "ram": "64mb", "hdd": "50mb"}


class GpuPlace(Workplace):
    """A workplace on a machine with GPUs."""

    @property
    def cards(self) -> Path:
        return self.root / "cards.json"

    def equip(self, *cards: dict[str, Any]) -> None:
        draft = self.cards.with_suffix(".part")
        draft.write_text(json.dumps(cards))
        draft.replace(self.cards)

    def begin(self, *options: str) -> Runner:
        return self.start(*options, env={"PYTHONPATH": str(ROOT), "SIMULATED_NVML": str(self.cards)})

    def explain(self, queue: str) -> str:
        command = [*self.program, "explain", "--working-dir", str(self.working), queue]
        env = {**self.env, "PYTHONPATH": str(ROOT)}
        return subprocess.run(command, env=env, cwd="/", capture_output=True, text=True, check=False).stdout

    def wanting(self, key: str, script: str, project: str = "tests", **gpus: object) -> None:
        message = self.message(script, key=key, resources_needed={**NEEDS, **gpus}, project=project)
        self.publish(message, key)


@pytest.fixture
def place(tmp_path: Path, working: Path) -> Iterator[GpuPlace]:
    made = GpuPlace(tmp_path, working, [sys.executable, "-m", "tests.servers.nvml"])
    yield made
    made.close()


def waiting_for(*paths: Path) -> str:
    names = [*map(str, paths)]
    return f"import pathlib, time\nwhile not all(pathlib.Path(each).exists() for each in {names}): time.sleep(.05)\n"


def test_experiments_get_cards_share_them_within_a_project_and_wait_for_them(place: GpuPlace) -> None:
    place.equip({"name": "Tesla V100-SXM2-16GB"}, {"name": "Tesla K80", "processes": {"1": 5}})
    go = place.root / "go"
    place.wanting("first", SHOW + waiting_for(go), gpus=8, gpuMem="2gb")
    runner = place.begin("--max-cores", "2")
    assert "GPU 0 (Tesla V100-SXM2-16GB) with 16 slots and 16 GiB" in runner.saw("GPUs: ")
    assert "GPU 1 (Tesla K80) is used by others (process 1)" in runner.saw("GPU 1")
    runner.saw("'first', attempt 1 gets 8 slots of GPU 0 (Tesla V100-SXM2-16GB)")
    place.wanting("second", SHOW, gpus=4)
    runner.saw("'second', attempt 1, completed")
    place.wanting("third", SHOW, gpus=16)
    reason = "it needs 16 GPU slots; GPU 0 (Tesla V100-SXM2-16GB) has 8 free, GPU 1 (Tesla K80) is used by others"
    runner.saw(reason)
    assert reason in place.explain("local_test")
    go.touch()
    place.settled()
    for key in ("first", "second", "third"):
        assert "cards: GPU-0 GPU-0\n" in place.output(key)
    place.wanting("plain", SHOW)
    place.settled()
    assert "cards: -1 -1\n" in place.output("plain")
    assert runner.stop() == 0


def test_a_card_that_breaks_costs_no_attempt_and_the_others_go_on(place: GpuPlace) -> None:
    cards = [{"name": "Tesla V100-SXM2-16GB"}, {"name": "Tesla V100-SXM2-16GB"}]
    place.equip(*cards)
    broken, hanging = place.root / "broken.json", place.root / "hanging"
    broken.write_text(json.dumps([{**cards[0], "xids": [79]}, cards[1]]))
    begin = f"import sys\n{SHOW}if os.environ['CUDA_VISIBLE_DEVICES'] == 'GPU-1': sys.exit()\n"
    place.wanting("hangs", f"{begin}open({str(hanging)!r}, 'w')\nimport time\ntime.sleep(600)\n", gpus=8)
    breaks = f"{waiting_for(hanging)}os.replace({str(broken)!r}, {str(place.cards)!r})\nsys.exit(1)\n"
    place.wanting("fails", begin + breaks, gpus=8)
    runner = place.begin("--max-cores", "2", "--max-attempts", "1")
    place.settled()
    assert "failed with XID 79: it is not given out any more" in runner.log
    for key in ("fails", "hangs"):
        assert "cards: GPU-1 GPU-1\n" in place.output(key)
        assert f"experiment {key!r}, attempt 1, completed" in runner.log
        assert f"experiment {key!r}, attempt 1, was given up: GPU 0 (Tesla V100-SXM2-16GB) failed" in runner.log
    documents = [json.loads(path.read_text()) for path in (place.store / "metadata").glob("scrape-*")]
    verdicts = sorted(
        (each["studioml"]["verdict"]["verdict"], each["studioml"]["verdict"]["fault"]) for each in documents
    )
    assert verdicts == [("gpu", "machine"), ("gpu", "machine"), ("ok", ""), ("ok", "")]
    place.wanting("large", SHOW, gpus=16, gpuCount=2)
    assert "which failed with XID 79" in runner.saw("'large' needs")


def test_a_failure_that_is_no_cards_doing_counts(place: GpuPlace) -> None:
    place.equip({"name": "NVIDIA L4", "memory_gib": 22.5, "capability": [8, 9]})
    place.wanting("wrong", "raise SystemExit(3)", gpus=1)
    runner = place.begin("--max-attempts", "1")
    place.settled()
    assert "ended with exit status 3" in runner.saw("not tried again")


@pytest.mark.parametrize("option", [(), ("--cpu-only",)])
def test_a_machine_without_gpus_says_so(place: GpuPlace, option: tuple[str, ...]) -> None:
    place.equip()
    place.wanting("wants", SHOW, gpus=1)
    runner = place.begin(*option)
    line = runner.saw("'wants' needs")
    assert ("no GPU (--cpu-only is set)" if option else "no GPU (NVIDIA's driver sees none)") in line
    assert runner.stop() == 0
    assert place.waiting == ["wants"]
