"""How texts become words, and which of them a tokenizer knows."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from frozenfusion.text.tokens import load_tokenizer, save_tokenizer, tokenize
from frozenfusion.text.words import MIN_COUNT, SPECIAL, vocabulary, word_tokenizer, words_of
from frozenfusion.utils.errors import UserError

CHINESE = "我今天很高兴去了北京大学"


def words(text: str, way: str = "space") -> list[str]:
    (found,) = words_of(word_tokenizer([], way), [text])
    return found


def test_urls_and_mentions_are_one_word_each_and_the_rest_is_lower_case_words_and_signs():
    text = "RT @anna_b: Don’t stop! #SoHappy http://t.co/aBc e@mail.org ＨＥＬＬＯ ❤️"
    told = "rt <user> : don't stop ! # sohappy <url> e @ mail . org hello ❤"
    assert words(text) == told.split()


def test_chinese_is_cut_into_characters_or_not_at_all_also_beside_other_letters_and_urls():
    text = "http://t.co/abc我爱NBA @张三丰 好"
    assert words(text) == ["<url>", "我爱", "nba", "<user>", "好"]
    assert words(text, "char") == ["<url>", "我", "爱", "nba", "<user>", "好"]


def test_marks_stay_with_their_letters():
    assert words("हिन्दी café cafe\u0301") == ["हिन्दी", "café", "café"]


def test_known_are_the_frequent_words_most_frequent_first_then_by_name():
    tokenizer = word_tokenizer(["b a c", "c b", "c once a", ""], "space")
    assert MIN_COUNT == 2
    assert vocabulary(tokenizer) == [*SPECIAL, "c", "a", "b"]
    same = word_tokenizer(["", "c once a", "c b", "b a c"], "space")
    assert same.backend_tokenizer.to_str() == tokenizer.backend_tokenizer.to_str()


def test_a_vocabulary_has_an_end_and_can_be_empty(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("frozenfusion.text.words.MOST_WORDS", 2)
    assert vocabulary(word_tokenizer(["a a b b b c c c d d"], "space")) == [*SPECIAL, "b", "c"]
    assert vocabulary(word_tokenizer(["each once"], "space")) == [*SPECIAL]


@settings(max_examples=60)
@given(
    st.lists(st.text(st.characters(exclude_categories=["Cs"]), max_size=30), max_size=4),
    st.sampled_from(["space", "char"]),
)
def test_any_texts_give_tokens_that_end_and_are_not_special_otherwise(texts: list[str], way: str):
    tokenizer = word_tokenizer(texts, way)
    tokens = tokenize(tokenizer, texts, 8)
    end, unknown = SPECIAL.index("</s>"), SPECIAL.index("<unk>")
    for number, (text, found) in enumerate(zip(texts, words_of(tokenizer, texts), strict=True)):
        ids = tokens.ids[tokens.offsets[number] : tokens.offsets[number + 1]].tolist()
        places = tokenizer.get_vocab()
        assert ids == [*(places.get(word, unknown) for word in found[:7]), end], text
        assert not set(found) & set(SPECIAL)


@settings(max_examples=50)
@given(st.text("x好.🙂@#_ \n\u0301", max_size=40))
def test_no_letter_is_lost(text: str):
    kept = "".join(words(text.replace("@", ""), "char"))
    assert [letter for letter in kept if letter in "x好.🙂#_"] == [letter for letter in text if letter in "x好.🙂#_"]


def test_special_tokens_that_a_text_spells_are_letters():
    texts = ["<pad> <unk> </s>"] * 2
    tokenizer = word_tokenizer(texts, "space")
    tokens = tokenize(tokenizer, texts[:1], 128)
    assert tokens.ids.tolist()[-1] == SPECIAL.index("</s>")
    assert min(tokens.ids.tolist()[:-1]) >= len(SPECIAL)


@pytest.mark.parametrize("texts", [[CHINESE, CHINESE], [*["so happy"] * 18, CHINESE]])
def test_where_jieba_lacks_chinese_says_so_in_a_line(texts: list[str], monkeypatch: pytest.MonkeyPatch):
    from frozenfusion.text import words as module

    module._jieba.cache_clear()
    monkeypatch.setitem(sys.modules, "jieba", None)
    with pytest.raises(UserError, match=r"pip install jieba, or train with `words=char`"):
        word_tokenizer(texts, "auto")
    word_tokenizer(texts, "char")


@pytest.mark.parametrize("texts", [["so happy"] * 30 + [CHINESE], ["今日はとても楽しい"] * 2, [""], []])
def test_few_chinese_texts_and_japanese_need_no_segmenter(texts: list[str], monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setitem(sys.modules, "jieba", None)
    word_tokenizer(texts, "auto")


def test_jieba_cuts_chinese_and_a_saved_tokenizer_cuts_alike(tmp_path: Path):
    pytest.importorskip("jieba")
    texts = [f"{CHINESE} NBA @张三丰", "转发 http://t.co/x北京大学。", "北京大学 nba", ""]
    tokenizer = word_tokenizer(texts, "auto")
    assert words_of(tokenizer, texts[:1]) == [["我", "今天", "很", "高兴", "去", "了", "北京大学", "nba", "<user>"]]
    assert vocabulary(tokenizer) == [*SPECIAL, "北京大学", "nba"]
    save_tokenizer(tokenizer, tmp_path)
    again = load_tokenizer(tmp_path)
    assert (tokenize(again, texts, 16).ids == tokenize(tokenizer, texts, 16).ids).all()


@settings(max_examples=50)
@given(st.text(st.one_of(st.characters(exclude_categories=["Cs"]), st.sampled_from(CHINESE)), max_size=30))
def test_jieba_loses_no_letter(text: str):
    pytest.importorskip("jieba")
    assert "".join(words(text, "jieba")) == "".join(words(text, "char"))


def test_a_tokenizer_with_an_unknown_segmenter_is_refused_in_a_line(tmp_path: Path):
    save_tokenizer(word_tokenizer(["a a"], "space"), tmp_path)
    config = tmp_path / "tokenizer_config.json"
    config.write_text(config.read_text().replace("{", '{"word_segmenter": ["os.system"], ', 1))
    with pytest.raises(UserError, match=r"word_segmenter is .*os\.system.*knows jieba"):
        load_tokenizer(tmp_path)
