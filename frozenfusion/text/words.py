"""Words of texts, and the tokenizer whose vocabulary they are.

A text is brought to NFKC and lower case; a URL becomes the word <url>, a mention <user>, and what is left is cut into
words and single signs, so that #sunny is # and sunny. Chinese has no spaces: its words are jieba's, or its characters.
"""

from __future__ import annotations

import functools
import re
import warnings
from collections import Counter
from collections.abc import Iterable, Sequence
from typing import Any

from tokenizers import Regex, Tokenizer, models, normalizers, pre_tokenizers, processors
from transformers import PreTrainedTokenizerBase, PreTrainedTokenizerFast

from frozenfusion.utils.errors import UserError
from frozenfusion.utils.messages import shown
from frozenfusion.utils.progress import log

PAD, UNKNOWN, END = "<pad>", "<unk>", "</s>"
SPECIAL = (PAD, UNKNOWN, END)  # END closes every text, so that none is empty

MIN_COUNT = 2  # in the training texts, of a word with an embedding of its own; the others teach what is unknown
MOST_WORDS = 50_000  # the most frequent ones

SEGMENTER = "word_segmenter"  # in a tokenizer's configuration: what cuts Chinese before the tokenizer does the rest
JIEBA = "jieba"
_CHINESE_SHARE = 0.05  # of the texts, from which on `auto` needs a segmenter

_HAN = "\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff\U00020000-\U0003fffd々〇"
_CHINESE = re.compile(f"[{_HAN}]")
_JAPANESE = re.compile("[\u3040-\u30ff]")
_RUN = re.compile(rf"@[\w-]+|([{_HAN}]+)")  # a mention's name stays whole
_URL = r"(?:https?://|www\.)[!-~]+"  # Chinese goes on right behind one
_MENTION = r"(?<![a-z0-9_.])@[\p{L}\p{N}_-]+"
_LETTER, _IN_WORD = rf"[\p{{L}}\p{{N}}_&&[^{_HAN}]]", rf"[\p{{L}}\p{{M}}\p{{N}}_&&[^{_HAN}]]"
_OTHERS = rf"{_LETTER}{_IN_WORD}*(?:'{_IN_WORD}+)*|[^\s\p{{M}}\p{{Cc}}\p{{Cf}}]"


def word_tokenizer(texts: Sequence[str], words: str) -> PreTrainedTokenizerFast:
    """A tokenizer whose vocabulary are the words of `texts`, the most frequent first.

    words: how Chinese is cut, "jieba", "char" (every character a word), "space" (not at all), or "auto", which is jieba
    where a twentieth of the texts is Chinese. Raises UserError where jieba is needed and not installed.
    """
    if words == "auto":
        words = JIEBA if _are_chinese(texts) else "space"
    segmenter = JIEBA if words == JIEBA else None
    tokenizer = Tokenizer(models.WordLevel({name: place for place, name in enumerate(SPECIAL)}, unk_token=UNKNOWN))
    tokenizer.normalizer = normalizers.Sequence(
        [
            normalizers.NFKC(),
            normalizers.Lowercase(),
            normalizers.Replace("’", "'"),
            normalizers.Replace(Regex(_URL), " <url> "),
            normalizers.Replace(Regex(_MENTION), " <user> "),
        ]
    )
    characters = f"[{_HAN}]" if words == "char" else f"[{_HAN}]+"
    pattern = Regex(f"<url>|<user>|{characters}|{_OTHERS}")
    tokenizer.pre_tokenizer = pre_tokenizers.Split(pattern, behavior="removed", invert=True)
    counts = Counter(word for text in _segmented(texts, segmenter) for word in _split(tokenizer, text))
    known = [word for word in counts if counts[word] >= MIN_COUNT]
    known = sorted(known, key=lambda word: (-counts[word], word))[:MOST_WORDS]
    tokenizer.model = models.WordLevel(
        {word: place for place, word in enumerate([*SPECIAL, *known])}, unk_token=UNKNOWN
    )
    tokenizer.post_processor = processors.TemplateProcessing(
        single=f"$A {END}", special_tokens=[(END, SPECIAL.index(END))]
    )
    chinese = {"char": ", Chinese by characters", JIEBA: ", Chinese as jieba cuts it"}.get(words, "")
    log.info(
        "%s words come %d times or more in the training texts and are known%s", f"{len(known):,}", MIN_COUNT, chinese
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        pad_token=PAD,
        unk_token=UNKNOWN,
        eos_token=END,
        **({SEGMENTER: segmenter} if segmenter else {}),
    )


def vocabulary(tokenizer: PreTrainedTokenizerBase) -> list[str]:
    """The words of a tokenizer, each at the place of its id."""
    places = tokenizer.get_vocab()
    return sorted(places, key=lambda word: places[word])


def words_of(tokenizer: PreTrainedTokenizerBase, texts: Sequence[str]) -> list[list[str]]:
    """The words of each text, known or not."""
    backend: Tokenizer = tokenizer.backend_tokenizer
    return [_split(backend, text) for text in segmented(tokenizer, texts)]


def segmented(tokenizer: PreTrainedTokenizerBase, texts: Sequence[str]) -> Sequence[str]:
    """Texts as a tokenizer takes them: with spaces between Chinese words where its configuration names a segmenter."""
    return _segmented(texts, segmenter_of(tokenizer))


def segmenter_of(tokenizer: PreTrainedTokenizerBase) -> str | None:
    """What cuts Chinese for a tokenizer, if anything. Raises UserError for what is not known here."""
    name = tokenizer.init_kwargs.get(SEGMENTER)
    if name not in (None, JIEBA):
        raise UserError(f"the tokenizer's {SEGMENTER} is {shown(name)}, and this program knows {JIEBA}: restore it")
    return JIEBA if name == JIEBA else None


def _segmented(texts: Sequence[str], segmenter: str | None) -> Sequence[str]:
    if segmenter is None:
        return texts
    cut = _jieba()
    return [_RUN.sub(lambda run: " ".join(cut(run[1])) if run[1] else run[0], text) for text in texts]


@functools.lru_cache(maxsize=1)
def _jieba() -> Any:
    """Function of a text that gives its words."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of its old regular expressions
            import jieba
    except ImportError as error:
        raise UserError(
            "the texts are Chinese, and jieba, which cuts them into words, is not installed: "
            "pip install jieba, or train with `words=char`"
        ) from error
    segmenter = jieba.Tokenizer()
    # not by itself: it would believe a cache in the folder of temporary files, where anybody may have put one
    segmenter.FREQ, segmenter.total = segmenter.gen_pfdict(segmenter.get_dict_file())
    segmenter.initialized = True
    return segmenter.lcut


def _are_chinese(texts: Iterable[str]) -> bool:
    kinds = [bool(_CHINESE.search(text)) and not _JAPANESE.search(text) for text in texts if text]
    return bool(kinds) and sum(kinds) >= _CHINESE_SHARE * len(kinds)


def _split(tokenizer: Tokenizer, text: str) -> list[str]:
    normal = tokenizer.normalizer.normalize_str(text)
    return [word for word, _ in tokenizer.pre_tokenizer.pre_tokenize_str(normal)]
