"""Slots: those of the cards that clients know, and that no card has none."""

from __future__ import annotations

import pytest

from runner.machine.cards import slots_of, slots_of_part

MIB = 2**20


@pytest.mark.parametrize(
    ("name", "mebibytes", "capability", "slots"),
    [
        # The table that clients know
        ("GeForce GTX 1060 6GB", 6078, (6, 1), 2),
        ("NVIDIA GeForce GTX 1080 Ti", 11178, (6, 1), 2),
        ("NVIDIA TITAN X (Pascal)", 12189, (6, 1), 2),
        ("NVIDIA GeForce RTX 2080 Ti", 11019, (7, 5), 2),
        ("Tesla K80", 11441, (3, 7), 2),
        ("Tesla P40", 22919, (6, 1), 4),
        ("Tesla P100-SXM2-16GB", 16280, (6, 0), 8),
        ("Tesla V100-SXM2-32GB", 32510, (7, 0), 16),
        ("NVIDIA A100-SXM4-40GB", 40536, (8, 0), 24),
        ("NVIDIA A100-PCIE-40GB", 40536, (8, 0), 24),
        # All others
        ("Tesla T4", 15109, (7, 5), 4),
        ("NVIDIA A10", 23028, (8, 6), 8),
        ("NVIDIA A10G", 22731, (8, 6), 8),
        ("NVIDIA L4", 23034, (8, 9), 8),
        ("NVIDIA A30", 24258, (8, 0), 14),
        ("NVIDIA L40S", 46068, (8, 9), 16),
        ("NVIDIA GeForce RTX 4090", 24564, (8, 9), 8),
        ("NVIDIA GeForce RTX 5090", 32607, (12, 0), 10),
        ("NVIDIA A100-SXM4-80GB", 81920, (8, 0), 48),
        ("NVIDIA H100 80GB HBM3", 81559, (9, 0), 56),
        ("NVIDIA H200", 143771, (9, 0), 100),
        ("NVIDIA B200", 183359, (10, 0), 144),
        ("NVIDIA GB10", 0, (12, 1), 2),
        ("NVIDIA GeForce GT 710", 2002, (3, 5), 2),
        ("Something of the year 2040", 4096 * 1024, (30, 0), 1364),
        ("GRID V100-8Q", 8192, (7, 0), 8),
        ("NVIDIA A100-10C", 10240, (8, 0), 6),
        ("NVIDIA A100-1-5C", 5120, (8, 0), 4),
        ("NVIDIA A100-40C", 40960, (8, 0), 24),
    ],
)
def test_every_card_has_slots(name: str, mebibytes: int, capability: tuple[int, int], slots: int) -> None:
    assert slots_of(name, mebibytes * MIB, capability) == slots


def test_the_instances_of_a_card_have_no_more_slots_than_the_card() -> None:
    parts = [slots_of_part(24, 40536 * MIB, each * MIB) for each in (4864, 9856, 19968, 40192)]
    assert parts == [3, 6, 12, 24]
    assert 7 * parts[0] <= 24
    assert slots_of_part(2, 8000 * MIB, 10 * MIB) == 1
    assert slots_of_part(2, 0, 0) == 1
