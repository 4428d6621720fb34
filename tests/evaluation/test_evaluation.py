from __future__ import annotations

import csv
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tiny
from PIL import Image
from safetensors.torch import load_file, save_file
from trained import make_run, make_world

from frozenfusion.data.pairs import load_pairs
from frozenfusion.data.places import image_stat
from frozenfusion.data.splits import Split
from frozenfusion.evaluation import metrics
from frozenfusion.evaluation import predictor as predict
from frozenfusion.evaluation.config import EvaluateConfig
from frozenfusion.evaluation.evaluator import Evaluation, evaluate
from frozenfusion.evaluation.inputs import EvaluationInputs
from frozenfusion.model.classifier import PairClassifier
from frozenfusion.store.reader import FeatureStore
from frozenfusion.store.writer import StoreWriter
from frozenfusion.text import cache as text_cache
from frozenfusion.utils.errors import UsageError, UserError


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = make_world(tmp_path_factory.mktemp("world"))
    make_run(folder, "image", "image", val_accuracy=0.9)
    make_run(folder, "concat-seed0", seed=0, freeze_text=True)
    make_run(folder, "concat-seed1", seed=1, freeze_text=True)
    make_run(folder, "text", "text")
    return folder


def run_on(
    world: Path, *names: str, out: Path | None, data: Path | None = None, cache: Path | None = None, **changes: Any
) -> Evaluation:
    """Runs evaluated, and the results written to `out`, or where they go by default."""
    config = EvaluateConfig(**({"bootstrap": 200, "batch_size": 16, "device": "cpu", "precision": "float32"} | changes))
    runs = [world / "runs" / name for name in names]
    pairs = load_pairs(data or world / "data" / "pairs.csv")
    found = evaluate(runs, pairs, cache or world / "features.h5", config=config)
    found.save(out)
    return found


def told_by_features(world: Path, ids: list[str]) -> list[str]:
    """What the image run must predict: the largest of a row's first three features (zeros without an image)."""
    store = FeatureStore(world / "features.h5")
    return [tiny.LABELS[int(row[:3].argmax())] for row in store.gather(store.rows(ids))]


def predictions(path: Path) -> list[dict[str, str]]:
    with path.open(newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


@pytest.mark.parametrize("part", ["test", "val", "train"])
def test_predictions_are_those_of_the_split_s_pairs_by_id_none_lost_or_shifted(world: Path, tmp_path: Path, part: str):
    run_on(world, "image", out=tmp_path, split=part)
    ids = sorted(getattr(Split.load(world / "runs" / "image" / "split.json"), part))
    lines = predictions(tmp_path / "predictions.csv")
    assert [line["id"] for line in lines] == ids
    assert [line["prediction"] for line in lines] == told_by_features(world, ids)
    assert [line["label"] for line in lines] == [tiny.LABELS[int(id[1:]) % 3] for id in ids]
    for line in lines:
        shares = {name: float(line[f"p_{name}"]) for name in tiny.LABELS}
        assert sum(shares.values()) == pytest.approx(1, abs=1e-5)
        assert max(shares, key=shares.__getitem__) == line["prediction"]


def test_the_size_of_batches_does_not_change_predictions(world: Path, tmp_path: Path):
    small = run_on(world, "concat-seed0", out=tmp_path)
    one_by_one = run_on(world, "concat-seed0", out=tmp_path, batch_size=1)
    np.testing.assert_allclose(
        small.predictions["concat-seed0"].probabilities, one_by_one.predictions["concat-seed0"].probabilities, atol=1e-5
    )


def test_runs_that_share_a_frozen_encoder_predict_what_they_predict_alone(world: Path, tmp_path: Path):
    names = ("concat-seed0", "concat-seed1", "image", "text")
    together = run_on(world, *names, out=tmp_path / "all").predictions
    for name in names:
        alone = run_on(world, name, out=tmp_path / name).predictions[name]
        np.testing.assert_allclose(together[name].probabilities, alone.probabilities, atol=1e-6)
        for modality, of in alone.without.items():
            np.testing.assert_allclose(together[name].without[modality], of, atol=1e-6)


def test_a_frozen_encoder_reads_the_texts_once_for_all_runs_and_evaluations(
    world: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    first = run_on(world, "concat-seed0", out=tmp_path).predictions["concat-seed0"]

    def refuse(*_: Any) -> None:
        raise AssertionError("the texts were encoded again")

    monkeypatch.setattr(text_cache, "encode", refuse)
    monkeypatch.setattr(PairClassifier, "encode_text", refuse)
    again = run_on(world, "concat-seed0", "concat-seed1", out=tmp_path).predictions["concat-seed0"]
    np.testing.assert_array_equal(again.probabilities, first.probabilities)


def test_where_text_features_cannot_be_kept_each_run_reads_the_texts(
    world: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
):
    kept = run_on(world, "concat-seed0", out=tmp_path).predictions["concat-seed0"]

    def refuse(*_: Any, **__: Any) -> None:
        raise UserError("the file system is read-only")

    monkeypatch.setattr(predict, "cached_texts", refuse)
    found = run_on(world, "concat-seed0", "concat-seed1", out=tmp_path).predictions["concat-seed0"]
    assert caplog.text.count("text features are not kept") == 1
    np.testing.assert_allclose(found.probabilities, kept.probabilities, atol=1e-6)


def test_metrics_of_a_run_are_those_of_its_predictions(world: Path, tmp_path: Path):
    run_on(world, "image", out=tmp_path)
    lines = predictions(tmp_path / "predictions.csv")
    labels, predicted = (np.array([tiny.LABELS.index(line[key]) for line in lines]) for key in ("label", "prediction"))
    expected = metrics.scores(metrics.confusion_matrix(labels, predicted, 3))
    values = json.loads((tmp_path / "metrics.json").read_text())
    assert values["accuracy"] == pytest.approx(float(expected.accuracy))
    assert values["macro_f1"] == pytest.approx(float(expected.macro_f1))
    assert values["weighted_f1"] == pytest.approx(float(expected.weighted_f1))
    assert values["confusion"] == metrics.confusion_matrix(labels, predicted, 3).tolist()
    assert values["classes"]["neutral"]["recall"] == pytest.approx(float(expected.recall[1]))
    low, high = values["accuracy_interval"]
    assert low <= values["accuracy"] <= high
    assert set(values["baselines"]) == {
        "majority class",
        "TF-IDF + logistic regression",
        "image features + logistic regression",
    }
    assert values["split"] == "test"
    assert (values["pairs"], values["labelled"]) == (len(lines), len(lines))
    assert (tmp_path / "confusion.png").read_bytes().startswith(b"\x89PNG")


def test_the_summary_stands_beside_the_baselines_with_classes_and_confusion(world: Path, tmp_path: Path):
    told = run_on(world, "image", out=tmp_path).table()
    for wanted in ("accuracy", "weighted F1", "majority class", "TF-IDF", "precision", "label \\ predicted", "neutral"):
        assert wanted in told


def test_several_runs_are_compared_in_files_for_people_and_for_programs(world: Path, tmp_path: Path):
    found = run_on(world, "image", "concat-seed0", "concat-seed1", "text", out=tmp_path)
    assert {row.name for row in found.comparison.heads} == {"image", "concat", "text"}
    assert len(found.comparison.row("concat").runs) == 2
    assert found.comparison.chosen == "image"  # by validation
    for name in ("image", "concat-seed0", "concat-seed1", "text"):
        assert {path.name for path in (tmp_path / name).iterdir()} == {
            "predictions.csv",
            "metrics.json",
            "confusion.png",
        }
    lines = {line["name"]: line for line in predictions(tmp_path / "comparison.csv")}
    assert set(lines) == {
        *("image", "concat", "text", "majority class", "TF-IDF + logistic regression"),
        "image features + logistic regression",
    }
    assert lines["concat"]["seeds"] == "2"
    assert 0 < float(lines["image"]["p"]) <= 1
    assert lines["image"]["detectable"] == ""  # so few pairs could show no difference at all
    assert float(lines["image"]["p_mcnemar"]) <= 1
    assert lines["concat"]["p"] == lines["concat"]["p_mcnemar"] == ""
    assert lines["image"]["parameters"] == "1000"
    markdown = (tmp_path / "comparison.md").read_text()
    assert "Chosen by the validation part alone: image" in markdown
    assert "The test part had no say in this choice" in markdown
    assert (tmp_path / "report.html").read_text().startswith("<!doctype html>")
    assert "Against concat" in found.table()


def test_results_go_into_the_run_or_beside_several_runs(world: Path):
    run = world / "runs" / "image"
    for changes, name in (({}, ""), ({"split": "val"}, "-val"), ({"without": "text"}, "-without-text")):
        run_on(world, "image", out=None, **changes)
        assert (run / f"evaluation{name}" / "report.html").exists()
    several = run_on(world, "", out=None)
    assert (world / "runs" / "comparison" / "report.html").exists()
    again = run_on(world, *sorted(path.name for path in (world / "runs").iterdir()), out=None)
    assert again.predictions.keys() == several.predictions.keys()


def test_withholding_a_modality_equals_pairs_that_never_had_it(world: Path, tmp_path: Path):
    whole = run_on(world, "concat-seed0", out=tmp_path / "a").predictions["concat-seed0"]
    for modality in ("text", "image"):
        blind = run_on(world, "concat-seed0", out=tmp_path / modality, without=modality)
        np.testing.assert_allclose(blind.predictions["concat-seed0"].probabilities, whole.without[modality], atol=1e-6)
        assert any(
            "withheld" in note for note in json.loads((tmp_path / modality / "metrics.json").read_text())["notes"]
        )
    without_image = run_on(world, "image", out=tmp_path / "b", without="image").predictions["image"].probabilities
    assert np.ptp(without_image, axis=0).max() == 0  # all pairs look alike to it


def test_new_data_is_evaluated_whole_and_it_is_said(world: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture):
    data = write_manifest(tmp_path / "new", ["a", "b"], label="neutral")
    cache = tiny.make_store(tmp_path / "new" / "features.h5", ids=["a", "b"])
    found = run_on(world, "image", out=tmp_path / "out", data=data, cache=cache)
    assert found.inputs.selection.name == "new"
    assert found.inputs.selection.ids == ["a", "b"]
    assert "is new to the run" in caplog.text
    assert "No baselines" in caplog.text
    assert [row.name for row in found.comparison.rows] == ["image"]


def test_unlabelled_pairs_are_predicted_and_not_scored(world: Path, tmp_path: Path):
    data = write_manifest(tmp_path / "new", ["p001", "p002"], label="")
    found = run_on(world, "image", out=tmp_path / "out", data=data)
    assert found.comparison is None
    assert [(line["id"], line["label"]) for line in predictions(tmp_path / "out" / "predictions.csv")] == [
        ("p001", ""),
        ("p002", ""),
    ]
    assert not (tmp_path / "out" / "metrics.json").exists()
    assert found.table() == "image: 2 pairs predicted, 0 positive, 1 neutral, 1 negative"


def test_pairs_that_the_train_part_repeats_are_counted_and_warned_of(tmp_path: Path, caplog: pytest.LogCaptureFixture):
    world = make_world(tmp_path / "world", 12)
    texts = [f"a text long enough to count {number}" for number in range(12)]
    texts[0] = "RT @someone: " + texts[11]
    ids = [f"p{number:03}" for number in range(12)]
    write_manifest(world / "data", ids, texts=texts)
    split = Split("seeded", 0, ids[6:], ids[4:6], ids[:4])
    make_run(world, "image", "image", split=split)
    run_on(world, "image", out=tmp_path / "out")
    assert "1 of the 4 test pairs have a text, and 0 an image, that also occurs in the train part" in caplog.text
    assert json.loads((tmp_path / "out" / "metrics.json").read_text())["shared_with_train"] == {"texts": 1, "images": 0}


def test_features_of_another_backbone_are_refused_by_name(world: Path, tmp_path: Path):
    other = make_world(tmp_path / "other", 60)
    folder = make_run(other, "image", "image")
    config = json.loads((folder / "config.json").read_text())
    config["model"]["image_fingerprint"]["backbone"] = "another"
    (folder / "config.json").write_text(json.dumps(config))
    with pytest.raises(UserError, match=r"other image features than .*backbone tiny → another.*give the `features`"):
        run_on(other, "image", out=tmp_path / "out")


def test_runs_of_different_splits_are_not_compared(tmp_path: Path):
    world = make_world(tmp_path / "world", 30)
    ids = [f"p{number:03}" for number in range(30)]
    make_run(world, "a", "image", split=Split("seeded", 0, ids[6:], [], ids[:6]))
    make_run(world, "b", "image", split=Split("seeded", 0, ids[:24], [], ids[24:]))
    with pytest.raises(UserError, match="different splits"):
        run_on(world, "a", "b", out=tmp_path / "out")


def test_the_last_parameters_are_used_where_asked_for(tmp_path: Path):
    world = make_world(tmp_path / "world", 30)
    folder = make_run(world, "image", "image", val_accuracy=0.9)
    zeros = {name: 0 * tensor for name, tensor in load_file(folder / "last.safetensors").items()}
    save_file(zeros, folder / "last.safetensors")
    best = run_on(world, "image", out=tmp_path / "best").predictions["image"].probabilities
    last = run_on(world, "image", out=tmp_path / "last", checkpoint="last").predictions["image"].probabilities
    assert np.ptp(best) > 0.5
    np.testing.assert_allclose(last, 1 / 3)
    assert json.loads((tmp_path / "best" / "metrics.json").read_text())["validation_accuracy"] == pytest.approx(0.9)
    assert json.loads((tmp_path / "last" / "metrics.json").read_text())["validation_accuracy"] == pytest.approx(0.8)


def test_a_head_that_attends_over_regions_shows_where_it_looks(tmp_path: Path):
    world = make_world(tmp_path / "world", 30, regions=4)
    Image.new("RGB", (40, 30), "teal").save(world / "data" / "x.jpg")
    with StoreWriter.open(world / "features.h5", FeatureStore(world / "features.h5").fingerprint) as writer:
        writer.set_stat(range(30), [image_stat(world / "data" / "x.jpg")] * 30)
    make_run(world, "cross-attention", "cross-attention")
    run_on(world, "cross-attention", out=tmp_path / "out")
    page = (tmp_path / "out" / "report.html").read_text()
    assert "Attention over the image" in page
    assert page.count("attention on p0") == 6


def write_manifest(folder: Path, ids: list[str], *, label: str = "positive", texts: list[str] | None = None) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / "pairs.csv"
    with path.open("w", newline="") as file:
        lines = csv.writer(file)
        lines.writerow(["id", "text", "image", "label"])
        lines.writerows([id, texts[i] if texts else "good sun", "x.jpg", label] for i, id in enumerate(ids))
    return path


def test_a_baseline_means_nothing_to_one_run(world: Path, tmp_path: Path):
    with pytest.raises(UsageError, match="`baseline=image` means nothing to one run"):
        run_on(world, "image", out=tmp_path, baseline="image")


def test_the_pairs_without_labels_can_be_predicted_on_their_own(tmp_path: Path):
    world = make_world(tmp_path / "world", 12)
    make_run(world, "image", "image")
    course = tmp_path / "course"
    (course / "data").mkdir(parents=True)
    ids = [f"p{number:03}" for number in range(12)]
    for id in ids:
        (course / "data" / f"{id}.txt").write_text("good sun")
    (course / "train.txt").write_text("guid,tag\n" + "".join(f"{id},neutral\n" for id in ids[:8]))
    asked = ["p010", "p008", "p011", "p009"]  # in an order of its own
    (course / "test_without_label.txt").write_text("guid,tag\n" + "".join(f"{id},null\n" for id in asked))
    run_on(world, "image", out=tmp_path / "out", data=course, split="unlabelled")
    assert [line["id"] for line in predictions(tmp_path / "out" / "predictions.csv")] == sorted(asked)
    tags = (tmp_path / "out" / "test_without_label.txt").read_text().splitlines()
    assert tags == ["guid,tag", *(f"{id},{tag}" for id, tag in zip(asked, told_by_features(world, asked), strict=True))]
    with pytest.raises(UserError, match="every pair has a label"):
        run_on(world, "image", out=tmp_path / "out", split="unlabelled")


def test_two_recipes_of_the_default_baseline_are_compared_with_the_first(tmp_path: Path):
    world = make_world(tmp_path / "world", 30)
    make_run(world, "b")
    make_run(world, "a", image_dropout=0.1, modality_dropout=0.1)
    config = world / "runs" / "a" / "config.json"
    values = json.loads(config.read_text())
    config.write_text(json.dumps({**values, "options": {**values["options"], "epochs": 50}}))
    (config.parent / "checksums.json").unlink()
    found = run_on(world, "b", "a", out=tmp_path / "out")
    assert found.comparison.reference.startswith("concat epochs=")
    with pytest.raises(UsageError, match="several trained models have this head"):
        run_on(world, "b", "a", out=tmp_path / "out", baseline="concat")


@pytest.mark.parametrize("error", [RuntimeError("DefaultCPUAllocator: can't allocate memory"), MemoryError()])
def test_too_little_memory_is_told_on_a_cpu_too(world: Path, monkeypatch: pytest.MonkeyPatch, error: Exception):
    def fail(*_: object, **__: object) -> None:
        raise error

    monkeypatch.setattr("frozenfusion.evaluation.predictor.predict", fail)
    with pytest.raises(UserError, match="cpu has too little memory for `batch_size=16`: choose a smaller one"):
        run_on(world, "image", out=None)


def test_files_do_not_depend_on_how_many_pairs_are_looked_at_at_once(
    world: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr("frozenfusion.evaluation.report.results.plot_confusion", lambda *_: None)
    run_on(world, "concat-seed0", out=tmp_path / "whole", bootstrap=100)
    for place in ("data.views._AT_ONCE", "text.tokens._TEXTS_AT_ONCE", "evaluation.baselines._TEXTS_AT_ONCE"):
        monkeypatch.setattr(f"frozenfusion.{place}", 3)
    monkeypatch.setattr("frozenfusion.evaluation.metrics._CELLS_A_TIME", 50)
    run_on(world, "concat-seed0", out=tmp_path / "parts", bootstrap=100)
    files = sorted(path.relative_to(tmp_path / "whole") for path in (tmp_path / "whole").rglob("*.*"))
    assert Path("report.html") in files
    for file in files:
        assert (tmp_path / "parts" / file).read_bytes() == (tmp_path / "whole" / file).read_bytes(), file


def test_rows_that_remember_no_image_share_none(world: Path, tmp_path: Path):
    store = FeatureStore(world / "features.h5")
    with StoreWriter.create(tmp_path / "f.h5", store.ids, store.shape, store.dtype, store.fingerprint) as writer:
        rows = np.arange(store.n)
        writer.write(rows, store.features, np.zeros((store.n, 16), np.uint8), np.zeros((store.n, 2), np.int64))
    pairs, config = load_pairs(world / "data" / "pairs.csv"), EvaluateConfig()
    inputs = EvaluationInputs([world / "runs" / "image"], pairs, FeatureStore(tmp_path / "f.h5"), config)
    assert inputs.train.pairs
    assert inputs.overlap.images == 0
