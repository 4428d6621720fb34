"""Train, validation and test parts: from files or drawn, the same for the same seed, and what they share."""

from __future__ import annotations

import random
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from frozenfusion.data.pairs import Pair, Pairs
from frozenfusion.data.splits import Split, normalised, overlap_between, split_pairs, stratified_sample
from frozenfusion.utils.errors import UserError


def some_pairs(
    labels: list[int | None], splits: list[str | None] | None = None, texts: list[str] | None = None
) -> Pairs:
    rows = [
        Pair(
            id=f"{i:05}",
            text=texts[i] if texts else "",
            image=Path(f"{i}.jpg"),
            label=label,
            split=splits[i] if splits else None,
        )
        for i, label in enumerate(labels)
    ]
    return Pairs(Path("data"), "manifest", ("a", "b", "c"), tuple(rows), {}, {})


def test_a_drawn_split_is_eight_to_two_and_stratified():
    labels = [0] * 2683 + [1] * 470 + [2] * 1358
    split = split_pairs(some_pairs(labels), seed=0, val_fraction=0.1)
    assert split.source == "seeded"
    assert len(split.test) == 902  # the reference's number
    assert (len(split.train), len(split.val)) == (3248, 361)
    of = {pair.id: pair.label for pair in some_pairs(labels)}
    assert Counter(of[id] for id in split.test) == {0: 537, 1: 94, 2: 271}


@settings(max_examples=60)
@given(
    labels=st.lists(st.sampled_from([0, 0, 0, 1, 2, None]), min_size=1, max_size=60),
    seed=st.integers(0, 5),
    val_fraction=st.sampled_from([0, 0.1, 0.5, 0.9]),
)
def test_every_labelled_pair_is_in_one_part_and_every_class_in_train(labels, seed, val_fraction):
    pairs = some_pairs(labels)
    labelled = [pair.id for pair in pairs if pair.label is not None]
    if not labelled:
        with pytest.raises(UserError, match="no pair has a label: add labels"):
            split_pairs(pairs, seed=seed, val_fraction=val_fraction)
        return
    split = split_pairs(pairs, seed=seed, val_fraction=val_fraction)
    assert sorted(split.train + split.val + split.test) == labelled
    of = {pair.id: pair.label for pair in pairs}
    assert {of[id] for id in split.train} == set(labels) - {None}
    assert split.train == sorted(split.train)


def test_drawing_does_not_depend_on_the_order_of_pairs():
    pairs = list(some_pairs([0, 1, 2] * 20))
    mixed = random.Random(1).sample(pairs, len(pairs))
    chosen, of_mixed = (stratified_sample(these, 0.3, 7, "x")[1] for these in (pairs, mixed))
    assert {pair.id for pair in chosen} == {pair.id for pair in of_mixed}


def test_seeds_draw_different_parts_and_the_same_seed_the_same():
    pairs = some_pairs([0, 1] * 50)
    first, again, other = (split_pairs(pairs, seed=seed, val_fraction=0.1) for seed in (0, 0, 1))
    assert first == again
    assert first.test != other.test


def test_a_new_pair_moves_few_others():
    before = split_pairs(some_pairs([0] * 100), seed=0, val_fraction=0)
    after = split_pairs(some_pairs([0] * 101), seed=0, val_fraction=0)
    assert len(set(before.test) ^ set(after.test)) <= 2


def test_a_class_of_one_stays_in_train():
    split = split_pairs(some_pairs([0] * 20 + [1]), seed=0, val_fraction=0.5)
    assert "00020" in split.train


def test_parts_that_files_name_are_taken_as_they_are():
    pairs = some_pairs([0, 1, 0, 1, 0], ["train", "train", "test", "val", None])
    split = split_pairs(pairs, seed=0, val_fraction=0.5)
    assert split == Split("files", 0, ["00000", "00001"], ["00003"], ["00002"])


def test_a_missing_validation_part_is_drawn_from_the_files_train_part():
    pairs = some_pairs([0, 0, 0, 0, 0], ["train"] * 4 + ["test"])
    split = split_pairs(pairs, seed=0, val_fraction=0.5)
    assert split.test == ["00004"]
    assert (len(split.train), len(split.val)) == (2, 2)
    assert split_pairs(pairs, seed=0, val_fraction=0).val == []


def test_a_test_part_without_labels_counts_as_missing():
    pairs = some_pairs([0] * 10 + [None] * 5, ["train"] * 10 + ["test"] * 5)
    split = split_pairs(pairs, seed=0, val_fraction=0)
    assert split.source == "seeded"
    assert (len(split.train), len(split.test)) == (8, 2)


def test_nothing_to_train_on_is_told():
    with pytest.raises(UserError, match="no labelled pair"):
        split_pairs(some_pairs([0, 0], ["test", "test"]), seed=0, val_fraction=0)


def test_a_split_is_saved_and_loaded(tmp_path):
    split = Split("seeded", 3, ["a", "b"], [], ["…"])
    split.save(tmp_path / "split.json")
    assert Split.load(tmp_path / "split.json") == split


@pytest.mark.parametrize(
    "content",
    ["[]", "{}", "no", '{"source": "files", "seed": 0, "train": "a", "val": [], "test": []}'],
)
def test_what_is_no_split_is_told(tmp_path, content):
    (tmp_path / "split.json").write_text(content)
    with pytest.raises(UserError, match=r"split\.json"):
        Split.load(tmp_path / "split.json")


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ("RT @anna: What a day! http://t.co/abc", "what a day http://t.co/xyz"),
        ("RT @a: RT @b: look at this #dog", "Look at   this #dog"),
        ("cut short here and th…", "RT @x: cut short here and t..."),
        ("ｆｕｌｌ width", "full width"),
        ("line one\nline two", "line one line two"),
        ("so good !!! :)", "so good"),
    ],
)
def test_a_retweet_normalises_to_its_original(one, other):
    assert normalised(one) == normalised(other) != ""


def test_parts_that_stay_empty_are_told_once(caplog):
    pairs = some_pairs([0, 1, 2])
    split = split_pairs(pairs)
    assert (len(split.train), split.val, split.test) == (3, [], [])
    (message,) = caplog.messages
    assert "no test part and no validation part: no class has pairs enough to spare some of the 3 labelled" in message
    caplog.clear()
    split_pairs(some_pairs([0, 0, 1, 1] * 5), val_fraction=0)
    assert not caplog.messages


def test_classes_of_one_pair_each_cannot_be_learnt():
    with pytest.raises(UserError, match="each of its 20 labelled pairs has a class of its own, so nothing can be"):
        split_pairs(some_pairs([*range(20)]))
    assert split_pairs(some_pairs([*range(20), 0])).train


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ("thanks @anna for this", "thanks @ben for this"),
        ("a fine day #happy", "a fine day #sad"),
        ("part of a sentence", "part of a sentence more"),
    ],
)
def test_texts_that_differ_in_a_word_stay_different(one, other):
    assert normalised(one) != normalised(other)


def test_texts_and_images_shared_between_parts_are_counted():
    texts = [
        "RT @a: the very same words http://x",
        "good morning",
        "",
        "lol",
        "the very same words",
        "lol",
        "",
        "unlike",
    ]
    pairs = some_pairs([0] * 8, None, texts)
    digests = np.array([b"A", b"B", b"", b"", b"B", b"B", b"C", b""])  # nothing is shared by pairs without an image
    shared = overlap_between(pairs, np.arange(4), np.arange(4, 8), digests)
    assert shared == (1, 2)
    assert (shared.texts, shared.images) == (1, 2)
