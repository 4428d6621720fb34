"""What a manifest says twice is refused, since nobody knows which of the two was meant."""

from __future__ import annotations

from pathlib import Path

import pytest

from frozenfusion.data.pairs import load_pairs
from frozenfusion.utils.errors import UserError


@pytest.mark.parametrize(
    ("name", "content", "told"),
    [
        ("m.csv", "id,text,image,label,Label\n1,a,x.jpg,yes,no\n", r"m\.csv:1: two columns are called label"),
        ("m.jsonl", '{"id": 1, "text": "a", "image": "x.jpg", "text": "b"}\n', r"m\.jsonl:1: .*a key is given twice"),
    ],
)
def test_a_column_or_a_key_that_comes_twice_is_an_error(tmp_path: Path, name: str, content: str, told: str):
    (tmp_path / name).write_text(content)
    with pytest.raises(UserError, match=told):
        load_pairs(tmp_path / name)


def test_columns_that_are_not_read_may_come_twice(tmp_path: Path):
    (tmp_path / "m.csv").write_text("id,text,image,note,note\n1,a,x.jpg,,\n")
    assert load_pairs(tmp_path / "m.csv").ids == ["1"]
