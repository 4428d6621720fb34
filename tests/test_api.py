"""The face that a person calls: the same values as the scripts, whatever a pair lacks."""

from __future__ import annotations

import csv
from pathlib import Path

import numpy as np
import pytest
import tiny
import torch
from PIL import Image
from safetensors.torch import save_file

import frozenfusion as ff
from frozenfusion.cli import evaluate as evaluate_command
from frozenfusion.data.images import decode_image
from frozenfusion.utils.errors import UsageError

SIZE = 64
IDS = [f"p{number:02d}" for number in range(24)]
NO_IMAGE, NO_TEXT, BROKEN = "p03", "p05", "p07"


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Posts with their pictures, one without a picture, one without a text, one with a broken picture."""
    folder = tmp_path_factory.mktemp("world")
    random = np.random.default_rng(0)
    (folder / "posts").mkdir()
    with (folder / "posts.csv").open("w", newline="") as file:
        lines = csv.writer(file)
        lines.writerow(["id", "text", "image", "label"])
        for number, id in enumerate(IDS):
            label, word = tiny.LABELS[number % 3], tiny.WORDS[number % 3][0]
            lines.writerow([id, "" if id == NO_TEXT else f"{word} {tiny.WORDS[1][2]}", f"posts/{id}.png", label])
            pixels = random.integers(0, 100 + 70 * (number % 3), (80, 60, 3), dtype=np.uint8)
            if id != NO_IMAGE:
                Image.fromarray(pixels).save(folder / "posts" / f"{id}.png")
    (folder / "posts" / f"{BROKEN}.png").write_bytes(b"<html>")
    tiny.make_text_encoder(folder / "encoder")
    return folder


@pytest.fixture(scope="module")
def pairs(world: Path) -> ff.Pairs:
    return ff.load_pairs(world / "posts.csv")


@pytest.fixture(scope="module")
def features(world: Path, pairs: ff.Pairs) -> ff.FeatureStore:
    config = ff.ExtractConfig(image_size=SIZE, batch_size=4, device="cpu")
    return ff.extract(pairs, world / "features.h5", backbone="efficientnet-b0", weights="random", config=config)


def config(world: Path, **changes: object) -> ff.TrainConfig:
    given = {"epochs": 2, "lr": 1e-3, "val_fraction": 0.2, "precision": "float32", "device": "cpu"}
    return ff.TrainConfig(text_encoder=str(world / "encoder"), text_weights="random", **(given | changes))


@pytest.fixture(scope="module")
def run(world: Path, pairs: ff.Pairs, features: ff.FeatureStore) -> ff.TrainedRun:
    return ff.train(pairs, features, head="hybrid", config=config(world), run=world / "runs" / "hybrid")


@pytest.fixture(scope="module")
def model(run: ff.TrainedRun) -> ff.PairClassifier:
    return ff.PairClassifier.from_pretrained(run)


@pytest.fixture(scope="module")
def expected(world: Path, run: ff.TrainedRun) -> dict[str, list[float]]:
    """What evaluate.py predicts, by id."""
    flags = ["--cache", str(world / "features.h5"), "--split", "all", "--precision", "float32", "--device", "cpu"]
    assert evaluate_command.main([str(run.folder), str(world / "posts.csv"), *flags, "--out", str(world / "out")]) == 0
    with (world / "out" / "predictions.csv").open(newline="") as file:
        return {line["id"]: [float(line[f"p_{name}"]) for name in tiny.LABELS] for line in csv.DictReader(file)}


def test_the_way_of_the_readme(world: Path, pairs: ff.Pairs, features: ff.FeatureStore, run: ff.TrainedRun):
    other = ff.train(pairs, features, config=config(world), run=world / "runs" / "concat")
    evaluation = ff.evaluate([run, world / "runs" / "concat"], pairs, features)
    names = {line.split()[0] for line in evaluation.table().splitlines()[3:8]}
    assert names == {"hybrid", "concat", "majority", "TF-IDF", "image"}
    assert evaluation.comparison is not None
    assert evaluation.predictions.keys() == {"hybrid", "concat"}
    assert not (world / "runs" / "comparison").exists()  # nothing is written until it is asked for
    look = evaluation.save(world / "report")
    assert look == world / "report" / "report.html"
    assert look.exists()
    assert other.folder == world / "runs" / "concat"


def test_cached_features_give_what_evaluate_gives_whatever_a_pair_lacks(
    model: ff.PairClassifier, pairs: ff.Pairs, features: ff.FeatureStore, expected: dict[str, list[float]]
):
    some = pairs.select([NO_IMAGE, NO_TEXT, BROKEN, "p00", "p23"])  # in an order of its own
    found = model.predict_proba(some, features)
    np.testing.assert_allclose(found, [expected[pair.id] for pair in some], atol=2e-6)
    assert model.predict(some, features.path) == [tiny.LABELS[row] for row in found.argmax(axis=1)]


def test_raw_pairs_give_what_their_cached_features_give(
    model: ff.PairClassifier, pairs: ff.Pairs, expected: dict[str, list[float]]
):
    some = pairs.select([NO_TEXT, NO_IMAGE, "p11", BROKEN])
    wanted = [expected[pair.id] for pair in some]
    np.testing.assert_allclose(model.predict_proba(some), wanted, atol=1e-5)
    texts, images = [pair.text or None for pair in some], [pair.image for pair in some]
    np.testing.assert_allclose(model.predict_proba(texts=texts, images=images), wanted, atol=1e-5)


def test_an_image_may_come_as_a_path_as_bytes_as_a_picture_or_as_pixels(model: ff.PairClassifier, pairs: ff.Pairs):
    path = pairs.select(["p11"])[0].image
    picture = Image.open(path)
    forms = [path, str(path), path.read_bytes(), picture, np.asarray(picture)]
    found = model.predict_proba(texts=["sun"] * len(forms), images=forms)
    np.testing.assert_allclose(found, found[:1].repeat(len(forms), axis=0), atol=1e-5)
    assert decode_image(path.read_bytes(), SIZE).shape == (SIZE, SIZE, 3)


def test_one_modality_alone_is_a_pair_that_lacks_the_other(
    model: ff.PairClassifier, pairs: ff.Pairs, expected: dict[str, list[float]]
):
    (no_image,) = pairs.select([NO_IMAGE])
    np.testing.assert_allclose(model.predict_proba(texts=[no_image.text]), [expected[NO_IMAGE]], atol=2e-6)
    (no_text,) = pairs.select([NO_TEXT])
    np.testing.assert_allclose(model.predict_proba(images=[no_text.image]), [expected[NO_TEXT]], atol=1e-5)


def test_an_id_that_the_features_do_not_have_is_an_error_as_in_evaluate(
    model: ff.PairClassifier, features: ff.FeatureStore, pairs: ff.Pairs
):
    stranger = ff.Pair("new", "sun", Path("new.png"), None, None)
    with pytest.raises(ff.UserError, match=r"lacks 1 of the 2 pairs that are needed \(new\): add them with"):
        model.predict([pairs[0], stranger], features)


def test_what_cannot_be_asked_is_told(model: ff.PairClassifier, pairs: ff.Pairs, features: ff.FeatureStore):
    for given in ({}, {"pairs": pairs, "texts": ["a"]}, {"texts": ["a"], "features": features}):
        with pytest.raises(ValueError, match="give pairs, with their features or without, or else texts"):
            model.predict(**given)
    with pytest.raises(ValueError, match="2 texts and 1 images"):
        model.predict(texts=["a", "b"], images=[None])
    for given in ({"pairs": pairs[0], "features": features}, {"texts": "so happy"}, {"images": "a.jpg"}):
        with pytest.raises(ValueError, match="give lists"):
            model.predict(**given)
    for image in (np.zeros((3, 8, 8), np.uint8), np.zeros((8, 8, 3)), 5):
        with pytest.raises(ValueError, match="an image"):
            model.predict(images=[image])
    with pytest.raises(ff.UserError, match="`precision` must be one of"):
        model.predict(texts=["a"], precision="fp16")
    with pytest.raises(ff.UserError, match="`checkpoint` must be one of best, last"):
        ff.PairClassifier.from_pretrained("anywhere", checkpoint="epoch-01")
    assert model.predict([], features) == []


def test_features_of_another_network_are_refused(model: ff.PairClassifier, pairs: ff.Pairs, tmp_path: Path):
    tiny.make_store(tmp_path / "other.h5", ids=IDS)
    with pytest.raises(ff.UserError, match="holds other image features than the model was trained on"):
        model.predict(pairs, tmp_path / "other.h5")


def test_a_network_that_cannot_be_had_is_told_with_what_to_fetch(
    run: ff.TrainedRun, pairs: ff.Pairs, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(torch.hub, "get_dir", lambda: str(tmp_path))

    def offline(*_: object, **__: object) -> None:
        raise OSError("no network")

    monkeypatch.setattr(torch.hub, "load_state_dict_from_url", offline)
    moved = ff.PairClassifier.from_pretrained(run, image_weights="imagenet")
    with pytest.raises(ff.UserError, match=r"image network of the model is needed.*fetch https.*`image_weights`"):
        moved.predict(pairs)
    other = tmp_path / "other.safetensors"
    from frozenfusion.vision.efficientnet import load_weights

    save_file(load_weights("efficientnet-b0", "random", seed=5), other)
    with pytest.raises(ff.UserError, match="is not the network that the model was trained with"):
        ff.PairClassifier.from_pretrained(run, image_weights=str(other)).predict(pairs)


def test_a_saved_model_is_the_model(
    model: ff.PairClassifier, pairs: ff.Pairs, features: ff.FeatureStore, tmp_path: Path
):
    model.save_pretrained(tmp_path / "copy")
    again = ff.PairClassifier.from_pretrained(str(tmp_path / "copy"))
    np.testing.assert_array_equal(again.predict_proba(pairs, features), model.predict_proba(pairs, features))
    assert not again.training


def test_a_saved_model_remembers_its_split_and_does_not_overwrite_a_training(
    model: ff.PairClassifier, run: ff.TrainedRun, pairs: ff.Pairs, features: ff.FeatureStore, tmp_path: Path
):
    model.save_pretrained(tmp_path / "copy")
    there = ff.evaluate([tmp_path / "copy", run], pairs, features)  # of one split: they can be compared
    assert there.inputs.selection.name == "test"
    (tmp_path / "copy" / "split.json").unlink()
    alone = ff.evaluate(tmp_path / "copy", pairs, features)
    assert "Which pairs" in alone.inputs.notes[0]
    assert "is not known" in alone.inputs.notes[0]
    with pytest.raises(ff.UserError, match="holds a training, which would be lost"):
        model.save_pretrained(run.folder)


def test_tables_of_others_have_gaps_and_arrays(model: ff.PairClassifier, pairs: ff.Pairs, tmp_path: Path):
    picture = np.asarray(Image.open(pairs.select(["p11"])[0].image))
    (half,) = (b"\x00\xd8".decode("utf-16", "surrogatepass"),)
    found = model.predict_proba(texts=[float("nan"), None, "", f"sun {half}"], images=np.stack([picture] * 4))
    np.testing.assert_allclose(found[:3], found[:1].repeat(3, axis=0), atol=1e-6)
    broken = tmp_path / "broken.png"
    Image.fromarray(np.random.default_rng(0).integers(0, 255, (90, 90, 3), dtype=np.uint8)).save(broken)
    broken.write_bytes(broken.read_bytes()[:900])
    with Image.open(broken) as picture_cut_short:
        cut, nothing = model.predict_proba(texts=["sun"] * 2, images=[picture_cut_short, None])
    np.testing.assert_allclose(cut, nothing, atol=1e-6)
    assert model.predict_proba(images=[picture]).shape == (1, 3)


def test_numbers_of_numpy_are_numbers(world: Path):
    made = ff.TrainConfig(epochs=np.int64(2), lr=np.float32(0.5), seed=np.arange(3)[1], text_encoder=world / "encoder")
    assert (made.epochs, made.lr, made.seed, made.text_encoder) == (2, 0.5, 1, str(world / "encoder"))
    assert type(made.epochs) is int
    assert ff.ExtractConfig(weights=world / "w.pth").weights == str(world / "w.pth")


def test_a_split_that_does_not_serve_is_told(world: Path, pairs: ff.Pairs, features: ff.FeatureStore, tmp_path: Path):
    for given, told in (
        ({"train": ["p00", "nobody"]}, r"train part names pairs that are not in .*: nobody"),
        ({"train": []}, "train part is empty"),
        ({"train": ["p00", "p00"]}, "names a pair twice"),
    ):
        split = ff.Split("mine", 0, **({"train": IDS[:9], "val": IDS[9:12], "test": []} | given))
        with pytest.raises(ff.UserError, match=told):
            ff.train(pairs, features, "image", config=config(world), run=tmp_path / "run", split=split)
    with pytest.raises(UsageError, match="`pairs` must be what load_pairs returned, not tuple"):
        ff.train(pairs[:9], features, "image", config=config(world), run=tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_a_head_that_was_typed_into_a_shell_trains_and_predicts(
    world: Path, pairs: ff.Pairs, features: ff.FeatureStore, tmp_path: Path
):
    code = (
        "import torch, frozenfusion as ff\n"
        "@ff.register_head('typed')\n"
        "class Typed(ff.FeatureHead):\n"
        "    def __init__(self, *, width, text_width, classes, alpha: float = 0.2):\n"
        "        super().__init__(width)\n"
        "        self.alpha, self.classifier = alpha, torch.nn.Linear(width, classes)\n"
        "    def forward(self, inputs, *, attention=False):\n"
        "        text, image = self.fill(inputs)\n"
        "        return ff.HeadOutput(self.classifier(text + image))\n"
    )
    namespace = {"__name__": "typed_here"}
    exec(code, namespace)
    try:
        run = ff.train(pairs, features, "typed", config=config(world, epochs=1), run=tmp_path / "run")
        model = ff.PairClassifier.from_pretrained(run)
        assert model.head.alpha == 0.2  # its own default
        assert len(model.predict(pairs[:3], features)) == 3
    finally:
        ff.fusion.base.HEADS.remove("typed")


def test_registering_wrongly_is_told():
    with pytest.raises(UsageError, match="takes the head's name"):

        @ff.register_head
        class Nameless(ff.FeatureHead):
            pass

    with pytest.raises(UsageError, match="register a subclass of FusionHead"):
        ff.register_head("plain")(torch.nn.Module)
    with pytest.raises(UsageError, match="takes the network's name"):
        ff.register_backbone(lambda weights: None)


def test_predicting_leaves_a_model_in_training_as_it_was(
    run: ff.TrainedRun, pairs: ff.Pairs, features: ff.FeatureStore
):
    model = ff.PairClassifier.from_pretrained(run).train()
    state = torch.get_rng_state()
    first, second = (model.predict_proba(pairs, features) for _ in range(2))
    np.testing.assert_array_equal(first, second)
    assert model.training
    assert torch.equal(torch.get_rng_state(), state)


def test_training_leaves_the_random_numbers_of_its_caller_alone(
    world: Path, pairs: ff.Pairs, features: ff.FeatureStore, tmp_path: Path
):
    torch.manual_seed(3)
    state = torch.get_rng_state()
    ff.train(pairs, features, "image", config=config(world, epochs=1), run=tmp_path / "run")
    assert torch.equal(torch.get_rng_state(), state)


def test_a_name_that_is_no_folder_is_looked_for_on_the_hub(monkeypatch: pytest.MonkeyPatch, run: ff.TrainedRun):
    import huggingface_hub

    with pytest.raises(ff.UserError, match=r"someone/model: no such folder, and it could not be fetched"):
        ff.PairClassifier.from_pretrained("someone/model")
    asked = []

    def snapshot(name: str, **given: object) -> str:
        asked.append((name, given["allow_patterns"]))
        return str(run.folder)

    monkeypatch.setattr(huggingface_hub, "snapshot_download", snapshot)
    assert ff.PairClassifier.from_pretrained("someone/model").config.fusion == "hybrid"
    assert asked[0][0] == "someone/model"
    assert "*.py" not in asked[0][1]


def test_a_sweep_and_a_split_of_one_s_own(world: Path, pairs: ff.Pairs, features: ff.FeatureStore, tmp_path: Path):
    split = ff.Split("mine", 0, train=IDS[:16], val=IDS[16:20], test=IDS[20:])
    runs = ff.sweep(
        pairs, features, ["image", "text"], seeds=[0, 1], config=config(world), folder=tmp_path / "sweep", split=split
    )
    assert [run.folder.name for run in runs] == ["image-seed0", "image-seed1", "text-seed0", "text-seed1"]
    evaluation = ff.evaluate(tmp_path / "sweep", pairs, features)
    assert evaluation.inputs.selection.ids == IDS[20:]


@pytest.mark.parametrize(
    ("make", "told"),
    [
        (lambda: ff.TrainConfig(epochs=0), "`epochs` must be at least 1, not 0"),
        (lambda: ff.TrainConfig(epochs=False), "`epochs` must be a whole number, not False"),
        (lambda: ff.TrainConfig(epochs=2.5), "`epochs` must be a whole number, not 2.5"),
        (lambda: ff.TrainConfig(lr=-1), "`lr` must be at least 0, not -1"),
        (lambda: ff.TrainConfig(lr="fast"), "`lr` must be a number, not 'fast'"),
        (lambda: ff.TrainConfig(schedule="cosinus"), "`schedule` must be one of cosine-restarts, cosine, linear"),
        (lambda: ff.TrainConfig(seed=2**64), "`seed` must be at most"),
        (lambda: ff.TrainConfig(alpha="learnt"), "`alpha` must be a number, not 'learnt'"),
        (lambda: ff.ExtractConfig(backbone="resnet"), "`backbone=resnet`: no such image network"),
        (lambda: ff.ExtractConfig(pool="max"), "`pool` must be one of avg, none"),
        (lambda: ff.EvaluateConfig(without="video"), "`without` must be one of text, image"),
        (lambda: ff.EvaluateConfig(bootstrap=1), "`bootstrap` must be at least 100"),
    ],
)
def test_a_config_checks_itself_when_it_is_made(make, told: str):
    with pytest.raises(UsageError) as error:
        make()
    assert told in str(error.value)


@pytest.mark.parametrize(
    ("head", "changes", "told"),
    [
        ("concat", {"alpha": 0.3}, "`alpha` means nothing to concat"),
        ("image", {"freeze_text": True}, "`freeze_text` means nothing to image"),
        ("text", {"image_dropout": 0.1}, "`image_dropout` means nothing to text"),
        ("concat", {"head_options": {"layers": 2}}, "`head_options` layers means nothing to concat"),
        ("transformer", {"head_options": {"layers": "two"}}, "layers=two: expected a whole number, as in 2"),
        ("transformer", {"head_options": {"layers": 0}}, "layers=0: one or more are needed"),
        ("transformer", {"head_options": {"dropout": 2.0}}, "cannot be built with dropout=2.0"),
        (("concat", "gated"), {}, "no such fusion head"),
        ("cross-attention", {}, "attends over image regions"),
    ],
)
def test_what_means_nothing_is_refused_before_anything_is_written(
    world: Path, pairs: ff.Pairs, features: ff.FeatureStore, tmp_path: Path, head, changes: dict, told: str
):
    with pytest.raises(ff.UserError) as error:
        ff.train(pairs, features, head, config=config(world, **changes), run=tmp_path / "run")
    assert told in str(error.value)
    assert not (tmp_path / "run" / "config.json").exists()


def test_a_part_of_the_pairs_is_a_data_set(world: Path, pairs: ff.Pairs, features: ff.FeatureStore, tmp_path: Path):
    part = pairs.subset(IDS[:12])
    assert part.ids == IDS[:12]
    run = ff.train(part, features, "image", config=config(world, epochs=1), run=tmp_path / "run")
    assert ff.evaluate(run, part, features).inputs.selection.name == "test"


@pytest.mark.parametrize(
    ("call", "told"),
    [
        (lambda pairs, features: ff.train("posts.csv", features), "`pairs` must be what load_pairs returned, not str"),
        (lambda pairs, features: ff.train(pairs, None), "`features` is a feature file, or what extract returned"),
        (lambda pairs, features: ff.train(pairs, features, config={"lr": 1}), "`config` is a TrainConfig, not"),
        (lambda pairs, features: ff.train(pairs, features, ["concat"]), "no such fusion head"),
        (lambda pairs, features: ff.extract(pairs.pairs, "x.h5"), "`pairs` must be what load_pairs returned"),
        (lambda pairs, features: ff.extract(pairs, "x.h5", config={}), "`config` is a ExtractConfig"),
        (lambda pairs, features: ff.evaluate([], pairs, features), "`runs` are run folders"),
        (lambda pairs, features: ff.evaluate([5], pairs, features), "`runs` are run folders"),
        (lambda pairs, features: ff.TrainConfig(head_options="layers=4"), "`head_options` is a mapping"),
    ],
)
def test_what_is_of_the_wrong_kind_is_told(pairs: ff.Pairs, features: ff.FeatureStore, call, told: str):
    with pytest.raises(UsageError) as error:
        call(pairs, features)
    assert told in str(error.value)


def test_a_head_that_gives_other_logits_is_told(
    world: Path, pairs: ff.Pairs, features: ff.FeatureStore, tmp_path: Path
):
    @ff.register_head("too-many")
    class TooMany(ff.FeatureHead):
        def __init__(self, *, width: int, text_width: int, classes: int) -> None:
            super().__init__(width)
            self.classifier = torch.nn.Linear(width, classes + 1)

        def forward(self, inputs: ff.HeadInputs, *, attention: bool = False) -> ff.HeadOutput:
            return ff.HeadOutput(self.classifier(self.fill(inputs)[0]))

    try:
        with pytest.raises(ff.UserError, match=r"fusion head too-many: forward gave \(\d+, 4\)"):
            ff.train(pairs, features, "too-many", config=config(world), run=tmp_path / "run")
        with pytest.raises(UsageError, match="'concat' is built in: choose another name"):
            ff.register_head("concat")(TooMany)
    finally:
        ff.fusion.base.HEADS.remove("too-many")
    assert tuple(ff.head_names()) == ff.fusion.base.BUILT_IN
