"""Which samples every step learns from."""

from __future__ import annotations

import numpy as np
import pytest

from edgepack.data.store import Group
from edgepack.passes.training.batches import Plan, batch_groups, hold_out


def group(*members: int, whole: bool = False, length: int = 4) -> Group:
    return Group({"x": (length,)}, whole, np.array(members))


def plan(*groups: Group, size: int = 4, parts: int = 1, exact: int | None = None) -> Plan:
    return Plan(groups, size, parts, exact, seed=0)


def members(steps: list[list[np.ndarray]]) -> list[int]:
    return sorted(int(m) for step in steps for part in step for m in part)


def test_every_sample_once_in_another_order_each_epoch() -> None:
    found = plan(group(*range(12)))
    first, second = found.epoch(0), found.epoch(1)
    assert members(first) == members(second) == list(range(12))
    assert found.steps() == len(first) == 3
    assert [p.tolist() for s in first for p in s] != [p.tolist() for s in second for p in s]
    again = plan(group(*range(12))).epoch(0)
    assert [p.tolist() for s in first for p in s] == [p.tolist() for s in again for p in s]


@pytest.mark.parametrize(
    ("count", "sizes"), [(9, [4, 4]), (10, [2, 4, 4]), (3, [3]), (1, [1]), (8, [4, 4])]
)
def test_a_small_rest_is_left_out_unless_it_is_all(count: int, sizes: list[int]) -> None:
    steps = plan(group(*range(count))).epoch(0)
    assert sorted(len(part) for step in steps for part in step) == sizes


def test_parts_share_a_batch_whoever_computes_them() -> None:
    """Two processes, or one that accumulates, learn from the same samples in each step."""
    alone = plan(group(*range(16)), size=8).epoch(3)
    shared = plan(group(*range(16)), size=8, parts=4).epoch(3)
    assert [np.concatenate(s).tolist() for s in alone] == [
        np.concatenate(s).tolist() for s in shared
    ]
    assert [len(part) for part in shared[0]] == [2, 2, 2, 2]


def test_samples_of_other_shapes_do_not_share_a_batch() -> None:
    short, long = group(0, 2, 4, 6, 8, length=3), group(1, 3, 5, 7, length=9)
    for step in plan(short, long).epoch(0):
        (part,) = step
        assert set(part % 2) in ({0}, {1})


def test_whole_feeds_are_parts_of_their_own() -> None:
    steps = plan(group(*range(8), whole=True), size=4, parts=2).epoch(0)
    assert [[len(part) for part in step] for step in steps] == [[1] * 4, [1] * 4]


def test_an_exact_batch_is_kept() -> None:
    found = plan(group(*range(8)), size=8, exact=3)
    assert [[len(part) for part in step] for step in found.epoch(0)] == [[3, 3]]
    assert found.steps() == 1
    assert plan(group(*range(2)), exact=3).steps() == 0


def test_what_is_held_out_is_in_no_step() -> None:
    held, left = hold_out([group(*range(0, 50)), group(*range(50, 100))], 0.1, seed=0)
    assert len(held) == 10
    assert not set(held) & set(members(plan(*left).epoch(0)))
    assert sum(len(g.members) for g in left) == 90
    again, _ = hold_out([group(*range(0, 50)), group(*range(50, 100))], 0.1, seed=0)
    assert held.tolist() == again.tolist()


def test_nothing_is_held_out_of_too_few() -> None:
    held, left = hold_out([group(0, 1, 2)], 0.02, seed=0)
    assert len(held) == 0
    assert left[0].members.tolist() == [0, 1, 2]


def test_batches_for_asking() -> None:
    groups = [group(0, 1, 2, 3, 4), group(5, 6, whole=True)]
    found = [b.tolist() for b in batch_groups(groups, np.array([0, 2, 3, 4, 6]), 3, None)]
    assert found == [[0, 2, 3], [4], [6]]
    assert [b.tolist() for b in batch_groups(groups[:1], np.arange(5), 3, 2)] == [[0, 1], [2, 3]]
