"""Stage one: every image once, bad ones kept apart, nothing computed twice."""

from __future__ import annotations

import csv
import errno
import io
import os
import shutil
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from frozenfusion.data.decoding import Decoder
from frozenfusion.data.pairs import load_pairs
from frozenfusion.extraction import extractor as stage_one
from frozenfusion.extraction import loop
from frozenfusion.extraction.config import ExtractConfig
from frozenfusion.extraction.extractor import update_features
from frozenfusion.extraction.inspection import info, verify
from frozenfusion.extraction.loop import ExtractionLoop
from frozenfusion.store.reader import FeatureStore
from frozenfusion.store.writer import StoreWriter
from frozenfusion.utils.errors import UserError
from frozenfusion.vision.folding import FoldedEfficientNet

SIZE = 32


def picture(path, seed):
    pixels = np.random.default_rng(seed).integers(0, 255, (40, 50, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(path)


@pytest.fixture
def data(tmp_path):
    """Eleven pairs without labels."""
    folder = tmp_path / "posts"
    folder.mkdir()
    for number in range(11):
        picture(folder / f"p{number:02d}.png", number)
        (folder / f"p{number:02d}.txt").write_text(f"post {number}")
    return folder


@pytest.fixture
def run(tmp_path, data):
    """Extract with a small network; keywords are options."""

    def extracted(**options):
        given = {"data": data, "cache": tmp_path / "cache" / "features.h5", "backbone": "efficientnet-b0"} | options
        posts, cache = load_pairs(given.pop("data")), given.pop("cache")
        config = ExtractConfig(**({"weights": "random", "image_size": SIZE, "batch_size": 4} | given))
        return update_features(posts, cache, config)

    return extracted


def many_scans(side, scans):
    """A progressive JPEG whose last scan comes again and again."""
    file = io.BytesIO()
    Image.new("L", (side, side)).save(file, "JPEG", progressive=True)
    data = file.getvalue()
    last = data.rindex(b"\xff\xda")
    return data[:last] + data[last:-2] * scans + data[-2:]


def bad_list(tmp_path):
    with (tmp_path / "cache" / "features.bad.csv").open(newline="") as file:
        return {row["id"]: (row["status"], row["reason"]) for row in csv.DictReader(file)}


def test_every_image_gets_its_own_row(run, data):
    summary = run()
    store = FeatureStore(summary.cache)
    assert summary.counts["ok"] == 11
    assert store.names() == sorted(f"p{number:02d}" for number in range(11))
    assert store.finished
    assert store.shape == (1280,)
    # one image alone gives the row that it got among others: nothing shifted
    (data / "only").mkdir()
    shutil.copy(data / "p07.png", data / "only" / "p07.png")
    alone = FeatureStore(run(data=data / "only", cache=data / "only.h5").cache)
    assert np.array_equal(alone.features[0], store.features[7])


def test_drafts_of_large_jpegs_are_other_features_and_never_mixed_with_those_of_whole_pictures(run, data, tmp_path):
    ramp = np.linspace(0, 255, 300 * 400 * 3).reshape(300, 400, 3).astype(np.uint8)
    Image.fromarray(ramp).save(data / "p11.jpg")
    (data / "p11.txt").write_text("large")
    whole = FeatureStore(run().cache)
    draft = FeatureStore(run(cache=tmp_path / "draft.h5", jpeg_draft=True).cache)
    assert [name for name in whole.names() if name != "p11"] == whole.names()[:11]
    assert np.array_equal(whole.features[:11], draft.features[:11])
    assert not np.array_equal(whole.features[11], draft.features[11])
    assert np.allclose(whole.features[11], draft.features[11], rtol=0, atol=0.1 * np.abs(whole.features[11]).max())
    with pytest.raises(UserError, match="resampling pillow-bilinear → pillow-bilinear, jpeg draft"):
        run(jpeg_draft=True)


def test_a_second_run_computes_nothing(run, monkeypatch):
    run()
    monkeypatch.setattr(stage_one.Backbone, "prepare", lambda *given, **options: pytest.fail("computed again"))
    summary = run()
    assert summary.timing.images == 0
    assert "nothing to compute" in str(summary)


def test_regions_are_stored_without_pooling(run):
    summary = run(pool="none", image_size=64, dtype="float16")
    store = FeatureStore(summary.cache)
    assert store.shape == (4, 1280)
    assert store.dtype == np.float16


def test_bad_images_keep_their_place_and_neighbours_are_not_affected(run, data, tmp_path):
    clean = np.array(FeatureStore(run(cache=tmp_path / "clean.h5").cache).features)
    (data / "p01.png").write_bytes(b"")
    (data / "p02.png").write_bytes((data / "p03.png").read_bytes()[:300])
    (data / "p04.png").write_bytes(b"<!DOCTYPE html><html>404</html>")
    (data / "p05.png").unlink()
    (data / "p05.png").mkdir()
    Image.new("RGB", (3000, 3000)).save(data / "p06.png")
    summary = run(max_pixels=1_000_000)
    store = FeatureStore(summary.cache)
    assert summary.counts == {"pending": 0, "ok": 6, "missing": 1, "unreadable": 3, "refused": 1, "crashed": 0}
    for row, name in enumerate(store.names()):
        expected = np.zeros(1280) if name in ("p01", "p02", "p04", "p05", "p06") else clean[row]
        assert np.array_equal(store.features[row], expected), name
    found = bad_list(tmp_path)
    assert {name: status for name, (status, _) in found.items()} == {
        "p01": "unreadable",
        "p02": "unreadable",
        "p04": "unreadable",
        "p05": "missing",
        "p06": "refused",
    }
    assert "HTML" in found["p04"][1]
    assert str(summary.bad_list) in str(summary)


def test_an_image_that_takes_too_long_is_refused_and_neighbours_are_not_affected(run, data, tmp_path):
    clean = np.array(FeatureStore(run(cache=tmp_path / "clean.h5").cache).features)
    (data / "p05.png").write_bytes(many_scans(4000, 20_000))
    summary = run(image_seconds=1, workers=2)
    store = FeatureStore(summary.cache)
    assert summary.counts == {"pending": 0, "ok": 10, "missing": 0, "unreadable": 0, "refused": 1, "crashed": 0}
    clean[5] = 0
    assert np.array_equal(store.features, clean)
    assert bad_list(tmp_path) == {"p05": ("refused", "takes more than 1 s to decode")}


def test_a_lack_of_memory_is_no_image_s_fault(run, data, monkeypatch):
    def lacking(self, content):
        if content == (data / "p07.png").read_bytes():
            raise MemoryError
        return decode(self, content)

    decode = Decoder.decode
    monkeypatch.setattr(Decoder, "decode", lacking)
    with pytest.raises(UserError, match=r"p07\.png: not enough memory .* fewer `workers`"):
        run(batch_size=1)
    monkeypatch.undo()
    summary = run()
    assert summary.counts["ok"] == 11
    assert summary.timing.images > 0


def test_reasons_of_earlier_runs_stay_in_the_list(run, data, tmp_path):
    (data / "p01.png").write_bytes(b"<html>")
    run()
    (data / "p02.png").write_bytes(b"")
    os.utime(data / "p02.png", ns=(1, 1))
    picture(data / "q.png", 99)
    run()
    assert "HTML" in bad_list(tmp_path)["p01"][1]
    assert "empty" in bad_list(tmp_path)["p02"][1]


def test_a_reason_that_a_kill_lost_is_found_again(run, data, tmp_path):
    (data / "p01.png").write_bytes(b"<html>")
    run()
    (tmp_path / "cache" / "features.bad.csv").unlink()  # it is written at the end
    assert run().timing.images == 1
    assert "HTML" in bad_list(tmp_path)["p01"][1]
    assert run().timing.images == 0


def test_the_list_goes_when_the_images_are_mended(run, data, tmp_path):
    (data / "p01.png").write_bytes(b"<html>")
    run()
    picture(data / "p01.png", 1)
    assert run().counts["ok"] == 11
    assert not (tmp_path / "cache" / "features.bad.csv").exists()


def test_a_bad_image_is_not_tried_again_unless_asked(run, data, monkeypatch):
    Image.new("RGB", (300, 300)).save(data / "p01.png")
    assert run(max_pixels=50_000).counts["refused"] == 1
    assert run().timing.images == 0
    summary = run(retry_failed=True)
    assert (summary.timing.images, summary.counts["ok"]) == (1, 11)


def test_strict_does_the_work_and_then_fails(run, data):
    (data / "p01.png").write_bytes(b"")
    with pytest.raises(UserError, match=r"1 of 11 images cannot be used, as .*features\.bad\.csv"):
        run(strict=True)
    assert run().timing.images == 0


def test_new_images_are_added_and_the_old_ones_kept(run, data):
    before = np.array(FeatureStore(run().cache).features)
    picture(data / "a-first.png", 50)
    summary = run()
    store = FeatureStore(summary.cache)
    assert summary.timing.images == 1
    assert store.names()[0] == "a-first"
    assert np.array_equal(store.features[1:], before)


def test_two_data_sets_share_a_cache(run, data, tmp_path):
    run()
    other = tmp_path / "other"
    other.mkdir()
    picture(other / "z.png", 7)
    summary = run(data=other)
    assert summary.counts["ok"] == 1
    assert FeatureStore(summary.cache).n == 12
    assert run().timing.images == 0


def test_a_changed_image_is_computed_again_and_a_touched_one_is_not(run, data, tmp_path):
    run()
    picture(data / "p03.png", 1003)
    os.utime(data / "p04.png", ns=(5, 5))
    summary = run()
    assert summary.timing.images == 1
    fresh = FeatureStore(run(cache=tmp_path / "fresh.h5").cache)
    assert np.array_equal(FeatureStore(summary.cache).features, fresh.features)
    assert run().timing.images == 0


def test_an_image_deleted_afterwards_keeps_its_features(run, data):
    manifest = data / "posts.csv"
    manifest.write_text("id,text,image\np02,two,p02.png\np03,three,p03.png\n")
    run(data=manifest)
    (data / "p03.png").unlink()
    assert run(data=manifest).counts["ok"] == 2


def test_other_settings_are_refused_with_each_difference_named(run):
    run()
    with pytest.raises(UserError, match="image_size 32 → 64") as error:
        run(image_size=64, dtype="float16")
    assert "dtype float32 → float16" in str(error.value)
    assert "`rebuild=True`" in str(error.value)


def test_a_rebuild_takes_the_old_files_place_when_it_is_whole(run, monkeypatch):
    summary = run()
    original = ExtractionLoop._mark, ExtractionLoop._start

    def interrupted(self, batch):
        if self._timing.forward:
            raise KeyboardInterrupt
        original[1](self, batch)

    monkeypatch.setattr(ExtractionLoop, "_start", interrupted)
    with pytest.raises(KeyboardInterrupt):
        run(image_size=64, rebuild=True, batch_size=2)
    assert FeatureStore(summary.cache).fingerprint["image_size"] == SIZE
    monkeypatch.undo()
    again = run(image_size=64, rebuild=True)
    assert again.timing.images < 11  # what the interrupted one finished was kept
    assert FeatureStore(summary.cache).fingerprint["image_size"] == 64
    assert FeatureStore(summary.cache).finished


def test_resume_never_and_always_mean_what_they_say(run):
    with pytest.raises(UserError, match="nothing to resume"):
        run(resume="always")
    run(resume="never")
    with pytest.raises(UserError, match="there already"):
        run(resume="never")
    assert run(resume="always").timing.images == 0


def test_batches_are_halved_when_memory_runs_out(run, tmp_path, monkeypatch):
    clean = np.array(FeatureStore(run(cache=tmp_path / "clean.h5", batch_size=2).cache).features)
    forward = FoldedEfficientNet.forward

    def small_memory(self, images):
        if len(images) > 2:
            raise RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to allocate 1 bytes.")
        return forward(self, images)

    monkeypatch.setattr(FoldedEfficientNet, "forward", small_memory)
    assert np.array_equal(FeatureStore(run(batch_size=8).cache).features, clean)


def test_memory_does_not_grow_with_the_number_of_images(run, monkeypatch):
    """At most a few batches are decoded ahead of the network."""
    decoded, computed, most = [], [], []
    original = ExtractionLoop._decode, ExtractionLoop._start

    def decode(self, task):
        decoded.append(task)
        most.append(len(decoded) - len(computed))
        return original[0](self, task)

    def start(self, batch):
        computed.extend(batch)
        original[1](self, batch)

    monkeypatch.setattr(ExtractionLoop, "_decode", decode)
    monkeypatch.setattr(ExtractionLoop, "_start", start)
    monkeypatch.setattr(loop, "BATCHES_AHEAD", 2)
    run(batch_size=1)
    assert len(decoded) == 11
    assert max(most) <= 2 + 1 + 1  # ahead, in the batch, and the one being counted


def test_features_that_are_no_numbers_are_refused(run, monkeypatch):
    def broken(self, images):
        return images.new_full((len(images), 1280), float("nan"), dtype=float)

    monkeypatch.setattr(FoldedEfficientNet, "forward", broken)
    with pytest.raises(UserError, match="no numbers"):
        run()


def test_a_file_that_is_no_feature_file_is_left_as_it_is(run, tmp_path):
    path = tmp_path / "cache" / "features.h5"
    path.parent.mkdir()
    path.write_bytes(b"my thesis")
    with pytest.raises(UserError, match=r"features\.h5"):
        run()
    assert path.read_bytes() == b"my thesis"


def test_wrong_data_leave_no_file_behind(run, tmp_path):
    with pytest.raises(UserError):
        run(data=tmp_path / "nowhere")
    manifest = tmp_path / "m.csv"
    manifest.write_text("id,text,image\n../x,hello,x.png\n")
    with pytest.raises(UserError, match=r"m\.csv:2"):
        run(data=manifest)
    assert not (tmp_path / "cache").exists()


def test_info_tells_what_a_file_holds(run):
    told = info(run().cache)
    for part in ("11 ok", "1280 float32", "efficientnet-b0", "finished", "torch"):
        assert part in told


def test_verify_says_what_it_cannot_check_yet(run):
    path = run().cache
    with StoreWriter.open(path, FeatureStore(path).fingerprint) as writer:
        writer.reset([2, 3])
    assert "all 9 rows are as they were written (2 more are pending)" in verify(path)


def test_verify_finds_damaged_rows_and_changed_images(run, data):
    cache = run().cache
    assert "all 11 rows" in verify(cache)
    assert "11 image files" in verify(cache, data)
    picture(data / "p03.png", 77)
    with pytest.raises(UserError, match=r"1 of 11 images .*p03"):
        verify(cache, data)
    store = FeatureStore(cache)
    with cache.open("rb+") as file:
        file.seek(store.spans["features"].offset + 5 * 1280 * 4 + 17)
        file.write(b"\xff")
    with pytest.raises(UserError, match=r"1 of 11 rows are damaged or not finite \(p05\)"):
        verify(cache)


def test_the_real_pairs_are_all_read(run, mvsa_sample):
    summary = run(data=mvsa_sample, batch_size=8)
    assert summary.counts["ok"] == len(summary.pairs) == 301
    assert summary.pairs.text_counts == {"utf-8": 242, "gb18030": 59}


def test_a_disk_that_may_only_be_read_is_asked_to_remove_nothing(run, monkeypatch):
    def refused(path, **_):
        raise OSError(errno.EROFS, os.strerror(errno.EROFS), str(path))

    run()
    monkeypatch.setattr(Path, "unlink", refused)
    assert run().counts["ok"] == 11


def test_where_no_image_can_be_used_that_is_told(run, data, tmp_path, caplog):
    manifest = tmp_path / "posts.csv"
    manifest.write_text("id,text,image\n1,a,photos/p00.png\n2,b,photos/p01.png\n")
    assert run(data=manifest, cache=tmp_path / "none.h5").counts["missing"] == 2
    assert "not one of 2 images can be used: is " in caplog.text
    assert "photos/p00.png where the first of them is?" in caplog.text


def test_a_list_that_is_not_ours_is_left_as_it_is(run, data, tmp_path, caplog):
    own = tmp_path / "cache" / "features.bad.csv"
    own.parent.mkdir()
    own.write_text("pictures,that,I,do,not,like\n")
    (data / "p01.png").write_bytes(b"<html>")
    assert run().bad_list is None
    assert "not a list of ours" in caplog.text
    (data / "p01.png").unlink()
    run(retry_failed=True)
    assert own.read_text() == "pictures,that,I,do,not,like\n"


@pytest.mark.parametrize("make", [os.mkfifo, os.mkdir])
def test_a_list_s_place_that_is_a_pipe_or_a_folder_is_not_waited_for(run, data, tmp_path, make):
    (tmp_path / "cache").mkdir()
    make(tmp_path / "cache" / "features.bad.csv")
    (data / "p01.png").write_bytes(b"<html>")
    assert run().bad_list is None


def test_what_a_file_says_of_itself_does_not_steer_the_terminal(tmp_path):
    made_by = {"backbone": "\x1b[31mred\x1b[0m\nnew line", "format": 1}
    with StoreWriter.create(tmp_path / "x.h5", ["a"], (3,), "float32", made_by) as writer:
        writer.mark([0], 2)
    told = info(tmp_path / "x.h5")
    assert "\x1b" not in told
    assert "?[31mred?[0m?new line" in told


def test_verify_finds_features_that_are_no_numbers(tmp_path):
    features = np.array([[1.0, 2.0], [np.nan, 0.0], [0.0, np.inf]], np.float32)
    with StoreWriter.create(tmp_path / "x.h5", ["a", "b", "c"], (2,), "float32", {"backbone": "x"}) as writer:
        writer.write([0, 1, 2], features, [bytes(16)] * 3, np.zeros((3, 2)))
    with pytest.raises(UserError, match=r"2 of 3 rows are damaged or not finite \(b, c\)"):
        verify(tmp_path / "x.h5")
