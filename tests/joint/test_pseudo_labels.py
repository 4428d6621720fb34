"""Which pairs get a pseudo-label, and which labels are hidden."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import numpy as np
import pytest
import tiny
from hypothesis import given, settings
from hypothesis import strategies as st

from frozenfusion.data.pairs import load_pairs
from frozenfusion.data.splits import split_pairs
from frozenfusion.joint.labels import draw_labels
from frozenfusion.joint.record import Record
from frozenfusion.joint.selection import agreed, balanced, sure_enough

NONE = -1


def probabilities(n: int, classes: int, seed: int) -> np.ndarray:
    return np.random.default_rng(seed).dirichlet(np.ones(classes), n)


@settings(max_examples=30)
@given(n=st.integers(0, 40), classes=st.integers(2, 5), count=st.integers(0, 60), seed=st.integers(0, 99))
def test_balanced_takes_the_surest_of_each_class_and_no_more_than_its_share(n, classes, count, seed):
    shares, prior = probabilities(n, classes, seed), np.random.default_rng(seed).dirichlet(np.ones(classes))
    labels = balanced(shares, count, prior)
    for label in range(classes):
        predicted = shares.argmax(1) == label
        taken = labels == label
        assert not (taken & ~predicted).any()
        assert taken.sum() == min(predicted.sum(), round(count * prior[label]))
        if taken.any() and (predicted & ~taken).any():
            assert shares[taken].max(1).min() >= shares[predicted & ~taken].max(1).max()


def test_balanced_keeps_the_shares_of_the_labels_where_one_class_is_always_surer():
    shares = np.array([[0.99, 0.01]] * 6 + [[0.4, 0.6]] * 6)
    assert Counter(balanced(shares, 4, np.array([0.5, 0.5])).tolist()) == {0: 2, 1: 2, NONE: 8}
    assert Counter(sure_enough(shares, 0.9).tolist()) == {0: 6, NONE: 6}
    assert Counter(sure_enough(shares, 0.5, most=7).tolist()) == {0: 6, 1: 1, NONE: 5}


def test_a_disagreement_drops_the_pair_and_one_teacher_alone_is_believed():
    one, other = np.array([0, 0, NONE, 2, NONE]), np.array([0, 1, 1, NONE, NONE])
    assert agreed(one, other).tolist() == [0, NONE, 1, 2, NONE]


def test_a_label_is_withdrawn_when_its_teacher_no_longer_gives_it():
    record, sure = Record({}), np.array([0.9, 0.8, 0.7])
    record.give("text", np.array([0, 1, NONE]), sure)
    record.give("image", np.array([0, 2, 2]), sure)
    record.history.append({})
    assert record.agreed(3).tolist() == [0, NONE, 2]
    record.give("text", np.array([0, NONE, 1]), sure)
    record.history.append({})
    assert record.agreed(3).tolist() == [0, 2, NONE]
    told = record.as_csv(["a", "b", "=c()"], ["x", "y", "z"]).splitlines()
    assert told == [
        "id,round,teacher,label,confidence,kept",
        *("a,1,text,x,0.9,1", "b,1,text,y,0.8,0"),
        *("a,1,image,x,0.9,1", "b,1,image,z,0.8,1", "'=c(),1,image,z,0.7,0"),
        "'=c(),2,text,y,0.7,0",
    ]


@pytest.mark.parametrize("fraction", [0.01, 0.1, 0.5, 1.0])
def test_labels_are_drawn_from_each_class_and_validation_never_has_more(tmp_path: Path, fraction: float):
    pairs = load_pairs(tiny.make_data(tmp_path, 120))
    split = split_pairs(pairs, seed=0, val_fraction=0.3)
    drawn, hidden = draw_labels(split, pairs, fraction, seed=1)
    assert sorted([*drawn.train, *hidden]) == split.train
    assert drawn.test == split.test
    assert set(drawn.val) <= set(split.val)
    assert len(drawn.val) <= len(drawn.train)
    of_class = np.bincount([pair.label for pair in pairs.select(drawn.train)], minlength=3)
    assert of_class.min() >= 1
    assert of_class.max() - of_class.min() <= 1  # as in all of the data
    assert abs(len(drawn.train) - max(3, fraction * len(split.train))) <= 1
    other, _ = draw_labels(split, pairs, fraction, seed=2)
    assert (other.train == drawn.train) == (fraction == 1)
    assert draw_labels(split, pairs, fraction, seed=1)[0] == drawn
