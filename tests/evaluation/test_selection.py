from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

from frozenfusion.data.pairs import Pair, Pairs
from frozenfusion.data.splits import Split
from frozenfusion.evaluation.selection import model_labels, select_pairs
from frozenfusion.utils.errors import UserError

DATA = Path("data")
SPLIT = Split("seeded", 0, ["a", "b", "c"], ["d"], ["e", "f"])


def pairs(ids: str, *, label: int | None = 0, names: tuple[str, ...] = ("yes", "no")) -> Pairs:
    found = tuple(Pair(id, "", DATA / id, label, None) for id in sorted(ids))
    return Pairs(DATA, "manifest", names, found, {}, {})


def run(split: Split = SPLIT, name: str = "run") -> SimpleNamespace:
    return SimpleNamespace(folder=SimpleNamespace(split=split), path=Path(name))


@pytest.mark.parametrize(("wanted", "ids"), [("test", "ef"), ("val", "d"), ("train", "abc"), ("all", "abcdef")])
def test_the_run_s_split_decides_which_pairs_are_which(wanted: str, ids: str):
    part = select_pairs(pairs("abcdef"), [run()], wanted)
    assert (part.name, part.ids, part.notes) == (wanted, list(ids), ())


def test_data_that_the_split_does_not_know_is_new_and_taken_whole():
    part = select_pairs(pairs("xyz"), [run()], "test")
    assert (part.name, part.ids) == ("new", ["x", "y", "z"])
    assert "new to the run: all of its 3 pairs" in part.notes[0]


def test_data_without_labels_is_taken_whole_whatever_its_ids():
    part = select_pairs(pairs("aef", label=None), [run()], "test")
    assert (part.name, part.ids) == ("new", ["a", "e", "f"])
    assert "no labels" in part.notes[0]


def test_pairs_that_are_missing_or_beside_the_split_are_counted():
    part = select_pairs(pairs("abcfxy"), [run()], "test")
    assert part.ids == ["f"]
    assert part.notes[0].startswith("1 of the 2 test pairs are not in data (e)")
    assert "2 pairs of data are in no part" in part.notes[1]


def test_a_part_of_which_nothing_is_there_is_an_error():
    with pytest.raises(UserError, match="none of the 2 test pairs"):
        select_pairs(pairs("abc"), [run()], "test")
    with pytest.raises(UserError, match="without a val part"):
        select_pairs(pairs("abc"), [run(Split("seeded", 0, ["a"], [], ["b"]))], "val")


def test_runs_need_not_share_their_train_part_but_the_part_that_is_evaluated():
    other = Split("seeded", 0, ["a", "b"], ["c", "d"], ["e", "f"])
    assert select_pairs(pairs("abcdef"), [run(), run(other)], "test").ids == ["e", "f"]
    with pytest.raises(UserError, match="one and other were trained on different splits"):
        select_pairs(pairs("abcdef"), [run(name="one"), run(other, "other")], "val")


def test_labels_are_in_the_model_s_order_of_classes():
    found = Pairs(
        DATA,
        "manifest",
        ("no", "yes"),
        tuple(Pair(id, "", DATA, label, None) for id, label in (("a", 0), ("b", 1), ("c", None))),
        {},
        {},
    )
    np.testing.assert_array_equal(model_labels(found, np.arange(3), ("yes", "maybe", "no")), [2, 0, -1])


def test_a_class_that_the_model_does_not_know_is_an_error_only_where_it_occurs():
    with pytest.raises(UserError, match="the class 'yes', and the model knows good, bad"):
        model_labels(pairs("a"), np.arange(1), ("good", "bad"))
    np.testing.assert_array_equal(model_labels(pairs("a", label=1), np.arange(1), ("no", "good")), [0])
