from __future__ import annotations

import re

import numpy as np
import pytest

from frozenfusion.data.pairs import load_pairs
from frozenfusion.evaluation.baselines import MAJORITY, TFIDF, TOKEN, baselines

TEXTS = ["good fine day", "good fine fun", "bad sad day", "bad sad rain", "good fine sun"]
LABELS = np.array([0, 0, 2, 2, 0])


def test_majority_is_the_train_part_s_most_frequent_class_for_every_pair():
    found = baselines(TEXTS, LABELS, ["bad", "", "good"], 3)[MAJORITY]
    np.testing.assert_allclose(found, [[3 / 5, 0, 2 / 5]] * 3)


def test_tfidf_learns_the_words_of_the_train_part():
    found = baselines(TEXTS, LABELS, ["so bad and sad", "all good and fine"], 3)[TFIDF]
    assert found.argmax(1).tolist() == [2, 0]
    np.testing.assert_allclose(found.sum(1), 1)
    assert (found[:, 1] == 0).all()  # a class that the train part lacks


def test_tfidf_does_not_learn_from_the_texts_that_it_is_tested_on():
    alone = baselines(TEXTS, LABELS, ["good unseen words"], 3)[TFIDF][0]
    among_others = baselines(TEXTS, LABELS, ["good unseen words", *["unseen words"] * 50], 3)[TFIDF][0]
    np.testing.assert_array_equal(alone, among_others)


@pytest.mark.parametrize(("texts", "labels"), [(["", "", ""], [0, 1, 1]), (TEXTS[:3], [1, 1, 1])])
def test_where_there_is_nothing_to_learn_tfidf_is_the_majority(texts: list[str], labels: list[int]):
    found = baselines(texts, np.array(labels), ["good"], 3)
    np.testing.assert_array_equal(found[TFIDF], found[MAJORITY])
    assert found[TFIDF].argmax(1).tolist() == [1]


def test_tfidf_reads_real_tweets(mvsa_sample):
    pairs = load_pairs(mvsa_sample)
    train = [row for row, pair in enumerate(pairs) if pair.split == "train"]
    test = [row for row, pair in enumerate(pairs) if pair.split == "test"]
    found = baselines([pairs[i].text for i in train], pairs.labels[train], [pairs[i].text for i in test], 3)[TFIDF]
    assert found.shape == (len(test), 3)
    assert len(set(found.argmax(1).tolist())) > 1


def test_tfidf_reads_chinese_by_the_character_and_english_by_the_word():
    texts = ["今天天气好", "天气很好 happy", "今天下雨不好", "又下雨了 sad"]
    found = baselines(texts, np.array([0, 0, 1, 1]), ["天气", "下雨"], 2)[TFIDF]
    assert found.argmax(1).tolist() == [0, 1]
    words = re.findall(TOKEN, "I'm so happy, 天气好 ok2 a ラメン")
    assert words == ["so", "happy", "天", "气", "好", "ok2", "ラ", "メ", "ン"]
