"""What the page of an evaluation shows, gathered.

Shapes: n pairs, b of them, c classes, r image regions.
"""

from __future__ import annotations

import unicodedata
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from frozenfusion.data.decoding import Decoder, no_memory
from frozenfusion.data.images import BadImage, quiet_pillow, read_image_file
from frozenfusion.data.pairs import Pair
from frozenfusion.data.places import ImagePlace
from frozenfusion.data.views import ids_of
from frozenfusion.evaluation import metrics
from frozenfusion.evaluation.comparison import Comparison
from frozenfusion.evaluation.inputs import EvaluationInputs
from frozenfusion.evaluation.label_curve import Point, label_curve, labelled_runs
from frozenfusion.evaluation.predictor import Predictor
from frozenfusion.evaluation.report.charts import data_uri
from frozenfusion.fusion.base import MODALITIES
from frozenfusion.fusion.registry import head_class
from frozenfusion.store.status import OK

MOST_MISTAKES = 12
MOST_ATTENTION = 6
LONGEST_TEXT = 400
THUMBNAIL = 224


@dataclass(frozen=True, eq=False)
class Example:
    """One pair as the page shows it."""

    id: str
    text: str
    image: str | None  # data URI
    label: str
    predicted: str
    probabilities: Sequence[tuple[str, float]]  # by class, the likeliest first
    attention: NDArray[np.floating] | None = None  # (r,) over image regions


@dataclass(frozen=True)
class Modalities:
    """How the text's classifier and the image's agree, and the head that sees both."""

    source: str  # a sentence: whose predictions these are
    fused: str
    agreement: metrics.Agreement


@dataclass(frozen=True, eq=False)
class Page:
    """All that the page shows."""

    title: str
    part: str  # "test", "val", "train", "all" or "new"
    facts: Sequence[str]
    notes: Sequence[str]
    comparison: Comparison
    modalities: Modalities | None = None
    mistakes: Sequence[Example] = ()
    attention: Sequence[Example] = ()
    attention_of: str = ""
    label_curve: Sequence[Point] = ()


def page_of(inputs: EvaluationInputs, comparison: Comparison, predictor: Predictor) -> Page:
    """The page of an evaluation: facts, mistakes, and what heads with attention look at."""
    heads = comparison.heads
    what = f"{len(heads)} fusion heads" if len(heads) > 1 else heads[0].name
    with quiet_pillow():
        attending, maps = _attention(inputs, comparison, predictor)
        mistakes = most_confident_mistakes(comparison, inputs.scored_members)
    return Page(
        title=f"{what} on {inputs.pairs.path.resolve().name}",
        part=inputs.selection.name,
        facts=_facts(inputs, comparison),
        notes=inputs.notes,
        comparison=comparison,
        modalities=modalities(comparison),
        mistakes=mistakes,
        attention=maps,
        label_curve=curve_of(inputs, comparison),
        attention_of=attending,
    )


def curve_of(inputs: EvaluationInputs, comparison: Comparison) -> list[Point]:
    """What the labels were worth to the runs; nothing unless there are several parts of them or ways to use them."""
    predictions = {run.name: run.probabilities.argmax(1) for row in comparison.heads for run in row.runs}
    points = label_curve(comparison.labels, comparison.label_names, labelled_runs(inputs.runs, predictions))
    return points if len(points) > 1 else []


def _facts(inputs: EvaluationInputs, comparison: Comparison) -> list[str]:
    n, part, seeds = len(comparison.labels), inputs.selection.name, {len(row.runs) for row in comparison.heads}
    facts = [f"{n:,} {'' if part == 'all' else part + ' '}pairs", f"{len(inputs.label_names)} classes"]
    if seeds != {1}:
        facts.append(f"{'–'.join(str(count) for count in sorted({min(seeds), max(seeds)}))} seeds per head")
    made_by = inputs.store.fingerprint
    told = (("backbone", "{}"), ("image_size", "{} px"), ("pooling", "pooling {}"))
    facts.append(", ".join(how.format(made_by[name]) for name, how in told if name in made_by))
    encoders = {run.model.text_encoder for run in inputs.runs if "text" in head_class(run.model.fusion).uses}
    if len(encoders) == 1:
        facts.append(f"texts by {'/'.join(Path(*encoders).parts[-2:])}")
    elif encoders:
        facts.append(f"{len(encoders)} text encoders")
    return [*facts, f"parameters of the {inputs.config.checkpoint} epoch"]


def _attention(inputs: EvaluationInputs, comparison: Comparison, predictor: Predictor) -> tuple[str, list[Example]]:
    """A head that attends over image regions, the page's own if it does, and what it looks at in a few random pairs."""
    attending = [row for row in (comparison.focus, *comparison.heads) if head_class(row.runs[0].head).takes_regions]
    status = inputs.store.status[inputs.store.rows(ids_of(inputs.members))]
    places = inputs.scored[status[inputs.scored] == OK]
    if not attending or not len(places) or len(inputs.store.shape) == 1 or inputs.config.without == "image":
        return "", []
    chosen = np.sort(np.random.default_rng(inputs.config.seed).permutation(places)[:MOST_ATTENTION])
    row = attending[0]
    maps = predictor.attention(next(run for run in inputs.runs if run.name == row.runs[0].name), chosen)
    if maps is None:
        return "", []
    probabilities = row.probabilities[0][np.searchsorted(inputs.scored, chosen)]
    examples = [
        example(inputs.members[place], inputs.label_names[inputs.labels[place]], of, inputs.label_names, weights)
        for place, of, weights in zip(chosen.tolist(), probabilities, maps, strict=True)
    ]
    return row.name, [each for each in examples if each.image]


def most_confident_mistakes(comparison: Comparison, pairs: Sequence[Pair]) -> list[Example]:
    """The wrong predictions of the comparison's head that were the surest, surest first; pairs as in the labels."""
    probabilities = np.mean(comparison.focus.probabilities, axis=0)
    predictions = probabilities.argmax(1)
    wrong = np.flatnonzero(predictions != comparison.labels)
    order = wrong[np.argsort(-probabilities[wrong].max(1), kind="stable")][:MOST_MISTAKES]
    names = comparison.label_names
    return [example(pairs[i], names[comparison.labels[i]], probabilities[i], names) for i in order.tolist()]


def example(
    pair: Pair,
    label: str,
    probabilities: NDArray[np.floating],
    label_names: Sequence[str],
    attention: NDArray[np.floating] | None = None,
) -> Example:
    """A pair with its thumbnail and its three likeliest classes."""
    order = np.argsort(-probabilities, kind="stable")[:3].tolist()
    text = "".join(map(_shown, pair.text))
    return Example(
        id=pair.id,
        text=text if len(text) <= LONGEST_TEXT else f"{text[: LONGEST_TEXT - 1]}…",
        image=thumbnail(pair.image),
        label=label,
        predicted=label_names[order[0]],
        probabilities=[(label_names[i], float(probabilities[i])) for i in order],
        attention=attention,
    )


def _shown(character: str) -> str:
    """A character of a foreign text: controls become visible, marks that reorder the text around them go."""
    category = unicodedata.category(character)
    if category == "Cf":
        return character if character in "\u200c\u200d" else ""  # joiners make emoji and letters whole
    return "\ufffd" if category in ("Cc", "Cs") and character not in "\n\t" else character


def thumbnail(image: ImagePlace) -> str | None:
    """A small square copy of an image as a data URI, None where it cannot be read."""
    try:
        with Decoder(THUMBNAIL) as decoder:
            return data_uri(decoder.decode(read_image_file(image)), "JPEG")
    except BadImage:
        return None
    except MemoryError as error:
        raise no_memory(image) from error


def modalities(comparison: Comparison) -> Modalities | None:
    """How the modalities agree, by the best evidence there is.

    That is the heads `text` and `image` if both were run, else the two classifiers inside the comparison's head, else
    that head with one modality withheld.
    """
    focus, labels, classes = comparison.focus, comparison.labels, len(comparison.label_names)
    alone = {row.head: row for row in comparison.heads if row.head in MODALITIES}
    run = focus.runs[0]
    fused = focus
    if len(alone) == 2:
        if focus.head in MODALITIES:
            fused = next((row for row in comparison.heads if row.head not in MODALITIES), focus)
        text, image = (alone[name].predictions for name in MODALITIES)
        source = "The heads text and image see one modality each."
    elif all(name in run.parts for name in MODALITIES):
        text, image = (_mean_of([run.parts[name] for run in focus.runs]).argmax(1) for name in MODALITIES)
        source = f"Inside {focus.name} each modality has a classifier of its own."
    elif set(run.without) == set(MODALITIES):
        image, text = (_mean_of([run.without[name] for run in focus.runs]).argmax(1) for name in MODALITIES)
        source = f"{focus.name} was given the text alone, and the image alone."
    else:
        return None
    if fused.head in MODALITIES:
        return None
    return Modalities(source, fused.name, metrics.agreement(labels, text, image, fused.predictions, classes))


def _mean_of(probabilities: Sequence[NDArray[np.float64]]) -> NDArray[np.float64]:
    return np.asarray(np.mean(probabilities, axis=0), dtype=np.float64)
