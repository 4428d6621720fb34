"""A label file of the course that has lost its header is told, not passed over."""

from __future__ import annotations

from pathlib import Path

import pytest

from frozenfusion.data.pairs import load_pairs
from frozenfusion.utils.errors import UserError


@pytest.mark.parametrize("beside", [True, False], ids=["beside one with a header", "alone"])
def test_a_label_file_without_its_header_is_an_error(tmp_path: Path, beside: bool):
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "1.txt").write_text("a text")
    (tmp_path / "data" / "1.jpg").write_bytes(b"")
    (tmp_path / "train.txt").write_text("1,positive\n")
    if beside:
        (tmp_path / "test_without_label.txt").write_text("guid,tag\n2,null\n")
    with pytest.raises(UserError, match=r"train\.txt:1: a label file without its header"):
        load_pairs(tmp_path)


def test_a_text_called_train_is_no_label_file(tmp_path: Path):
    (tmp_path / "train.txt").write_text("all aboard")
    (tmp_path / "train.jpg").write_bytes(b"")
    assert load_pairs(tmp_path).ids == ["train"]
