"""CUDA_VISIBLE_DEVICES and NVIDIA_VISIBLE_DEVICES restrict which cards the runner gives out."""

from __future__ import annotations

import pytest

from runner.machine.nvml import Sight
from runner.machine.visible import allowed, forbidden, unknown

WHOLE = [Sight(f"GPU-{letter * 8}-1111", index, "card") for index, letter in enumerate("abc")]
SPLIT = Sight("GPU-dddddddd-1111", 3, "card", instances=7)
PARTS = [Sight(f"MIG-{number}{'e' * 7}", 3, "part", parent=SPLIT.uuid, instance=number) for number in range(2)]
ALL = [*WHOLE, SPLIT, *PARTS]


def seen(**environ: str) -> str:
    """The cards and instances that are left, in short: a, b, c, 0, 1."""
    return "".join(sight.uuid[4] for sight in allowed(ALL, environ) if sight is not SPLIT)


@pytest.mark.parametrize(
    ("value", "left"),
    [
        ("all", "abc01"),
        ("0,2", "ac"),
        ("2, 0", "ac"),
        ("1,-1,2", "b"),
        ("", ""),
        ("-1", ""),
        ("none", ""),
        ("NoDevFiles", ""),
        ("GPU-bbbbbbbb-1111", "b"),
        ("GPU-bb", "b"),
        ("3", "01"),
        ("GPU-dddddddd-1111", "01"),
        ("MIG-1eeeeeee", "1"),
        ("MIG-1eeeeeee,0", "a1"),
        ("3:0", "0"),
        ("3.1", "1"),
        ("9", ""),
    ],
)
def test_what_is_named_is_left(value: str, left: str) -> None:
    assert seen(CUDA_VISIBLE_DEVICES=value) == left
    assert seen(NVIDIA_VISIBLE_DEVICES=value) == left


def test_without_the_variables_all_may_be_used() -> None:
    assert seen() == "abc01"
    assert not forbidden({"CUDA_VISIBLE_DEVICES": "all", "NVIDIA_VISIBLE_DEVICES": "0"})


def test_both_restrict() -> None:
    assert seen(CUDA_VISIBLE_DEVICES="0,1", NVIDIA_VISIBLE_DEVICES="GPU-bb,GPU-cc") == "b"


def test_the_hosts_indexes_mean_all_that_a_container_sees() -> None:
    """Its cards are numbered from 0, whatever numbers they have outside."""
    assert len(allowed(WHOLE, {"NVIDIA_VISIBLE_DEVICES": "4,6,7"})) == 3
    assert unknown(WHOLE, {"NVIDIA_VISIBLE_DEVICES": "4,6,7"}) == []


def test_the_hosts_indexes_of_instances_mean_all_that_a_container_sees() -> None:
    inside = [Sight("GPU-d", 0, "card", instances=7), Sight("MIG-a", 0, "part", parent="GPU-d", instance=0)]
    assert allowed(inside, {"NVIDIA_VISIBLE_DEVICES": "3:1"}) == inside
    assert unknown(inside, {"NVIDIA_VISIBLE_DEVICES": "3:1"}) == []
    two = [*inside, Sight("MIG-b", 0, "part", parent="GPU-d", instance=1)]
    assert allowed(two, {"NVIDIA_VISIBLE_DEVICES": "0:1"}) == two[2:], "that is no container's"


@pytest.mark.parametrize(
    "value",
    ["void", "/var/run/nvidia-container-devices", "nvidia.com/gpu=all", "k8s.device-plugin.nvidia.com/gpu=GPU-b"],
)
def test_cards_that_a_container_was_given_in_another_way_are_not_hidden(value: str) -> None:
    """By the Container Device Interface, and by Kubernetes' device plugin as volume mounts."""
    assert not forbidden({"NVIDIA_VISIBLE_DEVICES": value})
    assert seen(NVIDIA_VISIBLE_DEVICES=value) == "abc01"
    assert unknown(ALL, {"NVIDIA_VISIBLE_DEVICES": value}) == []
    assert seen(CUDA_VISIBLE_DEVICES=value) == ""


def test_it_is_told_which_variable_hides_all_and_which_word_means_nothing() -> None:
    assert forbidden({"CUDA_VISIBLE_DEVICES": "all", "NVIDIA_VISIBLE_DEVICES": "none"}) == "NVIDIA_VISIBLE_DEVICES"
    assert forbidden({"CUDA_VISIBLE_DEVICES": ""}) == "CUDA_VISIBLE_DEVICES"
    assert unknown(ALL, {"CUDA_VISIBLE_DEVICES": "0,9,GPU-bb,MIG-7"}) == [
        "CUDA_VISIBLE_DEVICES=9",
        "CUDA_VISIBLE_DEVICES=MIG-7",
    ]
