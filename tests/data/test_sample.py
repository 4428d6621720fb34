"""The built-in sample: the same for the same seed, dirty in every way, and told better by both modalities."""

from __future__ import annotations

import json
import subprocess
import sys
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from conftest import ROOT
from sklearn.feature_extraction.text import TfidfVectorizer
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from frozenfusion.data.images import BadImage, decode_image, file_digest, read_image_file
from frozenfusion.data.pairs import Pairs, load_pairs
from frozenfusion.data.sample.build import TEXT_ENCODER, make_sample
from frozenfusion.data.sample.texts import make_text_encoder
from frozenfusion.data.splits import overlap_between
from frozenfusion.store.status import MISSING, REFUSED, UNREADABLE
from frozenfusion.utils.errors import UserError


@pytest.fixture(scope="module")
def sample(tmp_path_factory) -> Pairs:
    return load_pairs(make_sample(tmp_path_factory.mktemp("sample") / "data"))


@pytest.fixture(scope="module")
def small(tmp_path_factory) -> Path:
    return make_sample(tmp_path_factory.mktemp("small") / "data", n=40, seed=3)


def contents(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def usable(pairs: Pairs) -> tuple[dict[str, np.ndarray], Counter[int]]:
    arrays, bad = {}, Counter()
    for pair in pairs:
        try:
            arrays[pair.id] = decode_image(read_image_file(pair.image), 48)
        except BadImage as error:
            bad[error.status] += 1
    return arrays, bad


def test_the_same_seed_makes_the_same_bytes_and_another_seed_others(small, tmp_path):
    same = contents(make_sample(tmp_path / "same", n=40, seed=3))
    assert same == contents(small)
    assert contents(make_sample(tmp_path / "other", n=40, seed=4)) != same


def test_it_has_the_references_layout_with_three_unbalanced_classes_split_eight_to_two(sample):
    assert (sample.layout, len(sample)) == ("reference", 600)
    assert np.bincount(sample.labels).tolist() == [270, 150, 180]
    assert Counter(pair.split for pair in sample) == {"train": 480, "test": 120}
    in_test = [pair.label for pair in sample if pair.split == "test"]
    assert np.bincount(in_test).tolist() == [54, 30, 36]


@pytest.mark.parametrize("size", ["small", "whole"])
def test_every_kind_of_dirt_is_there_and_rare(small, sample, size):
    pairs = load_pairs(small) if size == "small" else sample
    assert {"utf-8", "gb18030", "empty", "missing", "several lines"} <= set(pairs.text_counts)
    bad = usable(pairs)[1]
    assert set(bad) == {MISSING, UNREADABLE, REFUSED}
    assert sum(bad.values()) <= max(len(pairs) // 50, 6)


def test_a_few_test_pairs_are_retweets_of_train_pairs(sample):
    train, test = (np.flatnonzero([pair.split == part for pair in sample]) for part in ("train", "test"))
    digests = np.array([file_digest(pair.image.read_bytes()) if pair.image.exists() else b"" for pair in sample])
    shared = overlap_between(sample, train, test, digests)
    assert 1 <= shared.texts <= 8
    assert 1 <= shared.images <= 8


def test_each_modality_tells_a_part_and_both_tell_most(sample):
    """Linear classifiers on TF-IDF and on colours and edges; the majority class is right in 45 % of the test part."""
    arrays, _ = usable(sample)
    gone = np.zeros((48, 48, 3), dtype=np.uint8)
    pixels = np.stack([arrays.get(pair.id, gone) for pair in sample]).astype(float)
    seen = [pixels.mean((1, 2)), pixels.std((1, 2))]
    seen += [abs(np.diff(pixels, axis=axis)).mean((1, 2)) for axis in (1, 2)]
    train = np.array([pair.split == "train" for pair in sample])
    image = StandardScaler().fit(np.hstack(seen)[train]).transform(np.hstack(seen))
    words = TfidfVectorizer().fit([pair.text for pair in sample if pair.split == "train"])
    text = words.transform([pair.text for pair in sample]).toarray() * 3

    def accuracy(features: np.ndarray) -> float:
        classifier = make_pipeline(LogisticRegression(max_iter=1000)).fit(features[train], sample.labels[train])
        return float(classifier.score(features[~train], sample.labels[~train]))

    alone = accuracy(text), accuracy(image)
    assert all(0.6 < value < 0.82 for value in alone)
    assert accuracy(np.hstack([text, image])) > max(alone) + 0.08


def test_a_sample_that_is_there_is_left_as_it_is(small):
    before = (small / "data" / "1.txt").stat().st_mtime_ns
    assert make_sample(small, n=40, seed=3) == small
    assert (small / "data" / "1.txt").stat().st_mtime_ns == before


def test_other_peoples_folders_and_other_samples_are_not_touched(small, tmp_path):
    (tmp_path / "note.txt").write_text("mine")
    for folder, seed in ((tmp_path, 0), (small, 5), (tmp_path / "note.txt", 0)):
        with pytest.raises(UserError, match="choose another folder"):
            make_sample(folder, n=40, seed=seed)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["note.txt"]


def test_a_sample_too_small_for_its_dirt_is_refused(tmp_path):
    with pytest.raises(UserError, match="40 or more"):
        make_sample(tmp_path / "x", n=39)


def test_a_failure_half_way_leaves_nothing(tmp_path, monkeypatch):
    monkeypatch.setattr("frozenfusion.data.sample.build._spoil", lambda *_: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        make_sample(tmp_path / "x", n=40)
    assert list(tmp_path.iterdir()) == []


def test_the_text_encoder_loads_with_transformers_and_words_are_tokens(sample, tmp_path):
    from transformers import AutoConfig, AutoModel, AutoTokenizer

    train = [pair.text for pair in sample if pair.split == "train"]
    folder = make_text_encoder(tmp_path / "encoder", train)
    tokenizer = AutoTokenizer.from_pretrained(folder)
    config = AutoConfig.from_pretrained(folder)
    assert config.vocab_size == len(tokenizer) < 400
    encoded = tokenizer("Our LOVELY dog #happy http://t.co/a1", return_tensors="pt")
    tokens = tokenizer.convert_ids_to_tokens(encoded["input_ids"][0])
    assert tokens == ["[CLS]", "our", "lovely", "dog", "#", "happy", "http", "[SEP]"]
    assert set(encoded) == {"input_ids", "token_type_ids", "attention_mask"}
    assert tokenizer.pad_token_id == config.pad_token_id == 0
    hidden = AutoModel.from_config(config)(**encoded)[1]
    assert hidden.shape == (1, config.hidden_size)
    unknown = tokenizer("unheard 際")["input_ids"]
    assert max(unknown) < config.vocab_size


def test_the_text_encoder_is_the_same_for_the_same_texts(tmp_path):
    one, other = (contents(make_text_encoder(tmp_path / name, ["a b b", "b c c"])) for name in "xy")
    assert one == other
    assert set(one) == {"tokenizer.json", "tokenizer_config.json", "config.json"}


def test_it_runs_as_a_command(tmp_path):
    def run(pairs: int) -> subprocess.CompletedProcess[str]:
        command = [sys.executable, "-m", "frozenfusion", "sample", tmp_path / "s", "--pairs", str(pairs)]
        return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)

    done = run(40)
    assert done.returncode == 0, done.stderr
    assert "40 pairs (reference layout)" in done.stdout
    assert json.loads((tmp_path / "s" / TEXT_ENCODER / "config.json").read_text())["model_type"] == "albert"
    wrong = run(7)
    assert wrong.returncode == 2
    assert wrong.stderr.startswith("error: --pairs")
