"""What any model has to beat: the majority class, and a linear classifier on the words of the text.

Shapes: n pairs, c classes.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from itertools import islice

import numpy as np
from numpy.typing import NDArray

MAJORITY = "majority class"
TFIDF = "TF-IDF + logistic regression"
_TEXTS_AT_ONCE = 4096

# A character of a script without spaces between words, or else two or more letters and digits, which is scikit-learn's.
_UNSPACED = "\u3040-\u30ff\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff\U00020000-\U0003ffff"
TOKEN = rf"[{_UNSPACED}]|(?:(?![{_UNSPACED}])\w){{2,}}"

Labels = NDArray[np.int64]
Probabilities = NDArray[np.float64]


def baselines(
    train_texts: Iterable[str], train_labels: Labels, texts: Iterable[str], classes: int
) -> dict[str, Probabilities]:
    """Probabilities (n, c) that each baseline gives to `texts`, by its name; nothing but the train part is fitted."""
    by_words = tfidf(train_texts, train_labels, texts, classes)
    return {MAJORITY: majority(train_labels, len(by_words), classes), TFIDF: by_words}


def majority(train_labels: Labels, n: int, classes: int) -> Probabilities:
    """The class frequencies of the train part, for every pair alike: (n, c)."""
    counts = np.bincount(train_labels, minlength=classes)
    return np.broadcast_to(counts / counts.sum(), (n, classes))


def tfidf(train_texts: Iterable[str], train_labels: Labels, texts: Iterable[str], classes: int) -> Probabilities:
    """Logistic regression on TF-IDF: (n, c).

    Words and pairs of words that occur in two train texts or more (of Chinese and Japanese, characters and pairs of
    them), sublinear term frequency, otherwise scikit-learn's defaults (L2 penalty, C = 1). Where there is nothing to
    learn from (no such words, one class), the majority.
    """
    predict, texts = _tfidf_model(train_texts, train_labels, classes), iter(texts)
    parts = [np.zeros((0, classes))]
    while some := list(islice(texts, _TEXTS_AT_ONCE)):
        parts.append(predict(some))
    return np.concatenate(parts)


def _tfidf_model(
    train_texts: Iterable[str], train_labels: Labels, classes: int
) -> Callable[[Sequence[str]], Probabilities]:
    from sklearn.feature_extraction.text import TfidfVectorizer
    from sklearn.linear_model import LogisticRegression

    def most(texts: Sequence[str]) -> Probabilities:
        return majority(train_labels, len(texts), classes)

    words = TfidfVectorizer(token_pattern=TOKEN, ngram_range=(1, 2), sublinear_tf=True, min_df=2)
    try:
        train_features = words.fit_transform(train_texts)
    except ValueError:  # no vocabulary
        return most
    if len(np.unique(train_labels)) < 2:
        return most
    model = LogisticRegression(max_iter=1000).fit(train_features, train_labels)

    def predict(texts: Sequence[str]) -> Probabilities:
        probabilities = np.zeros((len(texts), classes))
        probabilities[:, model.classes_] = model.predict_proba(words.transform(texts))
        return probabilities

    return predict
