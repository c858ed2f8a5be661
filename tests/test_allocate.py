"""The ledger of a machine: never over-allocated, never leaked, and the least is left over."""

from __future__ import annotations

from itertools import combinations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from runner.machine.allocate import Allocation, Allocator, Need, Resources
from runner.machine.gpus import Card, Gpus, Wish

GIB = 2**30
V100 = {"slots": 16, "memory": 16 * GIB}


def cards(*slots: int, memory: int = 16 * GIB, part: bool = False) -> Gpus:
    return Gpus(Card(f"GPU-{number}", f"GPU {number} (card)", each, memory, part) for number, each in enumerate(slots))


def taken(gpus: Gpus, wish: Wish) -> dict[str, int]:
    return {grant.uuid: grant.slots for grant in gpus.reserve(wish)}


WISHES = st.builds(
    Wish,
    slots=st.integers(0, 40),
    count=st.sampled_from([0, 0, 0, 1, 2, 3]),
    memory=st.sampled_from([0, 0, GIB, 5 * GIB, 17 * GIB]),
    group=st.sampled_from([("q", "a"), ("q", "b")]),
)
NEEDS = st.builds(Need, st.integers(0, 4), st.integers(0, 500), st.integers(0, 500), WISHES)
CARDS = st.lists(
    st.builds(
        Card,
        uuid=st.uuids().map(str),
        name=st.just("card"),
        slots=st.sampled_from([2, 4, 8, 16, 24]),
        memory=st.sampled_from([8 * GIB, 16 * GIB]),
        part=st.sampled_from([False, False, True]),
        trouble=st.sampled_from(["", "", "", "is used by others"]),
    ),
    max_size=5,
    unique_by=lambda card: card.uuid,
)


def check_cards(found: list[Card], held: list[Allocation]) -> None:
    for card in found:
        grants = [grant for each in held for grant in each.gpus if grant.uuid == card.uuid]
        assert sum(grant.slots for grant in grants) <= card.slots
        assert sum(grant.memory for grant in grants) <= card.memory
        assert len({grant.group for grant in grants}) <= 1, "projects share a card"
        assert not (grants and card.trouble)


def check_wish(wish: Wish, allocation: Allocation, found: list[Card]) -> None:
    by_name = {card.uuid: card for card in found}
    shares = [grant.slots for grant in allocation.gpus]
    assert len({grant.uuid for grant in allocation.gpus}) == len(shares)
    assert all(grant.slots > 0 and grant.memory >= wish.memory for grant in allocation.gpus)
    if wish.count and wish:
        assert shares == [wish.slots] * wish.count
    else:
        assert sum(shares) == wish.slots
    assert len(shares) < 2 or not any(by_name[grant.uuid].part for grant in allocation.gpus)


@given(CARDS, st.lists(st.tuples(NEEDS, st.booleans(), st.integers(0, 100)), max_size=40))
def test_what_is_given_out_never_exceeds_the_machine_and_comes_back(
    found: list[Card], steps: list[tuple[Need, bool, int]]
) -> None:
    total = Resources(cpus=8, ram=1000, hdd=1000)
    allocator = Allocator(total, Gpus(found))
    held: list[Allocation] = []
    for need, ends, which in steps:
        if ends and held:
            allocator.release(held.pop(which % len(held)))
        if allocator.fits(need):
            assert allocator.could_ever(need)
            assert allocator.lacking(need) == ""
            held.append(allocator.reserve(need))
            check_wish(need.gpus, held[-1], found)
        else:
            assert allocator.lacking(need)
            with pytest.raises(ValueError, match="do not fit"):
                allocator.reserve(need)
        assert sum((each.need for each in held), Resources()) == total - allocator.free
        assert min(allocator.free.cpus, allocator.free.ram, allocator.free.hdd) >= 0
        check_cards(found, held)
    for each in held:
        allocator.release(each)
    assert allocator.free == total
    assert not allocator.gpus.held


def test_an_account_that_does_not_balance_is_an_error() -> None:
    allocator = Allocator(Resources(2, 2, 2))
    with pytest.raises(ValueError, match="do not fit"):
        allocator.reserve(Need(3))
    one = allocator.reserve(Need(1))
    allocator.reserve(Need(cpus=0, ram=1))
    allocator.release(one)
    with pytest.raises(ValueError, match="not reserved"):
        allocator.release(one)


@pytest.mark.parametrize("need", [Need(cpus=2), Need(ram=2), Need(hdd=2)], ids=str)
def test_each_resource_counts_by_itself(need: Need) -> None:
    allocator = Allocator(Resources(3, 3, 3))
    assert allocator.could_ever(need)
    assert not allocator.could_ever(Need(2 * need.cpus, 2 * need.ram, 2 * need.hdd))
    allocator.reserve(need)
    assert not allocator.fits(need)


@pytest.mark.parametrize(
    ("need", "only"),
    [(Need(4, gpus=Wish(8)), True), (Need(5, gpus=Wish(8)), False), (Need(4, gpus=Wish(4)), False), (Need(5), False)],
)
def test_what_also_lacks_something_else_does_not_lack_only_gpus(need: Need, only: bool) -> None:
    allocator = Allocator(Resources(8, 8, 8), cards(8))
    allocator.reserve(Need(4, gpus=Wish(4)))
    assert allocator.lacks_only_gpus(need) is only


# Packing


@given(st.lists(st.integers(1, 12), min_size=1, max_size=7), st.integers(1, 40))
def test_the_least_is_left_over(free: list[int], wanted: int) -> None:
    """Against all ways that there are: cards of 12 slots, of which so many are free."""
    gpus = cards(*[12] * len(free))
    for number, each in enumerate(free):
        if each < 12:
            others = [card for card in gpus.cards if card.uuid != f"GPU-{number}"]
            everything = gpus.cards
            gpus.renew([card for card in everything if card not in others])
            gpus.reserve(Wish(12 - each))
            gpus.renew(everything)
    shares = taken(gpus, Wish(wanted)) if gpus.fits(Wish(wanted)) else {}
    if wanted <= 12:
        enough = [each for each in free if each >= wanted]
        best = min(enough, default=0)
        assert [free[int(uuid.removeprefix("GPU-"))] for uuid in shares] == ([best] if enough else [])
    else:
        ways = [way for size in range(1, len(free) + 1) for way in combinations(free, size) if sum(way) >= wanted]
        best = min((sum(way) for way in ways), default=0)
        assert sum(free[int(uuid.removeprefix("GPU-"))] for uuid in shares) == best
        assert len(shares) == min((len(way) for way in ways if sum(way) == best), default=0)


def test_a_small_wish_goes_to_the_smallest_card_and_then_beside_its_like() -> None:
    gpus = cards(16, 2, 16)
    assert taken(gpus, Wish(2)) == {"GPU-1": 2}
    assert taken(gpus, Wish(4)) == {"GPU-0": 4}
    assert taken(gpus, Wish(4)) == {"GPU-0": 4}


def test_one_slot_fits_any_card_however_big() -> None:
    assert taken(cards(144), Wish(1)) == {"GPU-0": 1}


def test_what_no_single_card_has_is_spread_and_what_one_has_is_waited_for() -> None:
    assert taken(cards(2, 2, 2), Wish(5)) == {"GPU-0": 2, "GPU-1": 2, "GPU-2": 1}
    gpus = cards(8, 4, 4)
    gpus.reserve(Wish(8, group=("other", "")))
    assert not gpus.fits(Wish(8)), "one card would do when it is free"
    assert taken(cards(16, 16, 2), Wish(18)) == {"GPU-0": 16, "GPU-2": 2}


def test_a_card_is_shared_only_within_one_queues_project() -> None:
    gpus = cards(16)
    first = gpus.reserve(Wish(2, group=("q", "mine")))
    assert gpus.fits(Wish(14, group=("q", "mine")))
    assert not gpus.fits(Wish(1, group=("q", "yours")))
    assert not gpus.fits(Wish(1, group=("r", "mine")))
    assert "another queue or project" in gpus.lacking(Wish(1, group=("r", "mine")))
    gpus.release(first)
    assert gpus.fits(Wish(1, group=("r", "mine")))


def test_a_number_of_cards_means_so_many_slots_on_each() -> None:
    gpus = cards(16, 8, 16)
    assert taken(gpus, Wish(4, count=2)) == {"GPU-0": 4, "GPU-1": 4}
    assert not gpus.could_ever(Wish(16, count=3))
    assert not gpus.could_ever(Wish(1, count=4))


def test_memory_is_shared_like_slots_unless_it_is_asked_for() -> None:
    gpus = cards(16)
    gpus.reserve(Wish(8))
    assert not gpus.fits(Wish(1, memory=9 * GIB)), "the first one has half of it"
    assert gpus.fits(Wish(1, memory=8 * GIB))
    assert not gpus.could_ever(Wish(1, memory=17 * GIB))
    assert not gpus.could_ever(Wish(1, count=1, memory=17 * GIB))


def test_an_instance_is_given_alone_for_programs_see_no_second_one() -> None:
    gpus = cards(3, 3, 12, part=True)
    assert taken(gpus, Wish(3)) == {"GPU-0": 3}
    assert taken(gpus, Wish(4)) == {"GPU-2": 4}
    assert not gpus.could_ever(Wish(13))
    assert not gpus.could_ever(Wish(1, count=2))
    assert gpus.could_ever(Wish(1, count=1))


# In words


def test_the_reason_is_told_card_by_card() -> None:
    gpus = Gpus([Card("a", "GPU 0 (Tesla V100)", **V100), Card("b", "GPU 1 (T4)", 4, 15 * GIB, trouble="is lent")])
    gpus.reserve(Wish(14))
    allocator = Allocator(Resources(1, 1, 1), gpus)
    assert allocator.lacking(Need(1, 1, 1, Wish(4))) == (
        "4 GPU slots; GPU 0 (Tesla V100) has 2 free, GPU 1 (T4) is lent"
    )
    assert allocator.left().endswith(", 2 of 16 slots of GPU 0 (Tesla V100), GPU 1 (T4) is lent")


@pytest.mark.parametrize(
    ("wish", "words"),
    [
        (Wish(1), "1 GPU slot"),
        (Wish(4, count=2), "4 GPU slots on each of 2 GPUs"),
        (Wish(4, count=1, memory=8 * GIB), "4 GPU slots on one GPU with 8 GiB of GPU memory"),
    ],
)
def test_a_wish_in_words(wish: Wish, words: str) -> None:
    assert str(wish) == words


def test_a_machine_without_gpus_says_why() -> None:
    allocator = Allocator(Resources(1, 1, 1), Gpus(absent="--cpu-only is set"))
    need = Need(1, 1, 1, Wish(1))
    assert not allocator.could_ever(need)
    assert allocator.could_ever(Need(1, 1, 1))
    assert allocator.offered(need).endswith("no GPU (--cpu-only is set)")


def test_a_broken_card_is_out_of_the_reckoning_and_one_that_is_busy_is_not() -> None:
    card = Card("a", "GPU 0 (V100)", **V100)
    busy = Gpus([Card("a", "GPU 0 (V100)", **V100, trouble="is used by others")])
    assert busy.could_ever(Wish(16)) and not busy.fits(Wish(1))
    busy.renew([card])
    held = busy.reserve(Wish(16))
    busy.renew([Card("a", "GPU 0 (V100)", **V100, trouble="failed with XID 79", broken=True)])
    assert not busy.could_ever(Wish(1))
    busy.release(held)
    busy.renew([card])
    assert busy.fits(Wish(16))
