"""What any model has to beat: the majority class, and a linear classifier on the words of the text.

Shapes: n pairs, c classes.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

MAJORITY = "majority class"
TFIDF = "TF-IDF + logistic regression"

# A character of a script without spaces between words, or else two or more letters and digits, which is scikit-learn's.
_UNSPACED = "\u3040-\u30ff\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff\U00020000-\U0003ffff"
TOKEN = rf"[{_UNSPACED}]|(?:(?![{_UNSPACED}])\w){{2,}}"

Labels = NDArray[np.int64]
Probabilities = NDArray[np.float64]


def baselines(
    train_texts: Sequence[str], train_labels: Labels, texts: Sequence[str], classes: int
) -> dict[str, Probabilities]:
    """Probabilities (n, c) that each baseline gives to `texts`, by its name; nothing but the train part is fitted."""
    return {
        MAJORITY: majority(train_labels, len(texts), classes),
        TFIDF: tfidf(train_texts, train_labels, texts, classes),
    }


def majority(train_labels: Labels, n: int, classes: int) -> Probabilities:
    """The class frequencies of the train part, for every pair alike: (n, c)."""
    counts = np.bincount(train_labels, minlength=classes)
    return np.tile(counts / counts.sum(), (n, 1))


def tfidf(train_texts: Sequence[str], train_labels: Labels, texts: Sequence[str], classes: int) -> Probabilities:
    """Logistic regression on TF-IDF: (n, c).

    Words and pairs of words that occur in two train texts or more (of Chinese and Japanese, characters and pairs of
    them), sublinear term frequency, otherwise scikit-learn's defaults (L2 penalty, C = 1). Where there is nothing to
    learn from (no such words, one class), the majority.
    """
    from sklearn.feature_extraction.text import TfidfVectorizer
    from sklearn.linear_model import LogisticRegression

    words = TfidfVectorizer(token_pattern=TOKEN, ngram_range=(1, 2), sublinear_tf=True, min_df=2)
    try:
        train_features = words.fit_transform(train_texts)
    except ValueError:  # no vocabulary
        return majority(train_labels, len(texts), classes)
    if len(np.unique(train_labels)) < 2:
        return majority(train_labels, len(texts), classes)
    model = LogisticRegression(max_iter=1000).fit(train_features, train_labels)
    probabilities = np.zeros((len(texts), classes))
    probabilities[:, model.classes_] = model.predict_proba(words.transform(texts))
    return probabilities
