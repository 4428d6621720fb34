"""Evaluate trained runs on one part of the data, beside the baselines, and compare them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from frozenfusion import tables
from frozenfusion.baselines import baselines
from frozenfusion.comparison import Comparison, RunResult, compare
from frozenfusion.device import autocast_type, choose_device
from frozenfusion.files import write_atomically
from frozenfusion.fusion import head_class
from frozenfusion.images import OK
from frozenfusion.inputs import Inputs
from frozenfusion.options import EvaluateOptions
from frozenfusion.page import MOST_ATTENTION, Example, Page, example, modalities, most_confident_mistakes, render
from frozenfusion.parts import Part
from frozenfusion.predict import Arithmetic, Predicted, Predictor
from frozenfusion.progress import log
from frozenfusion.results import write_metrics, write_predictions
from frozenfusion.runs import common_folder


@dataclass(frozen=True, eq=False)
class Evaluation:
    """What came out: the figures where there are labels, and where the files are."""

    part: Part
    predictions: Mapping[str, Predicted]  # by the run's name; rows as part.ids
    comparison: Comparison | None
    out: Path
    look: Path  # the file to look at first

    def summary(self) -> str:
        """The figures as tables for a terminal, and where to look next."""
        told = [tables.comparison_text(self.comparison, self.part.name)] if self.comparison else []
        return "\n\n".join([*told, f"results in {self.out}: look at {self.look}"])


def evaluate(options: EvaluateOptions) -> Evaluation:
    """Predict the part of the data that is asked for with every run, score what has labels, and write the results.

    The folder of results holds predictions.csv, metrics.json and confusion.png of each run (in a folder of its name
    where there are several) and report.html; for several runs comparison.md and comparison.csv as well. Raises
    UserError where a run, the data or the feature file does not serve.
    """
    device = choose_device(options.device)
    arithmetic = Arithmetic(device, autocast_type(options.precision, device), options.batch_size)
    inputs = Inputs(options)
    for note in inputs.notes:
        log.warning(note)
    predictor = Predictor(inputs.pairs, inputs.part.ids, inputs.store, options.data, options.checkpoint, arithmetic)
    found = {run.name: predicted for run, predicted in predictor.predictions(inputs.runs, options.without)}
    out = options.out or _default_out(options, inputs)
    folders = {name: out / name if len(found) > 1 else out for name in found}
    for name, predicted in found.items():
        path = folders[name] / "predictions.csv"
        write_predictions(path, inputs.part.ids, inputs.labels, inputs.label_names, predicted.probabilities)
    if not len(inputs.scored):
        return Evaluation(inputs.part, found, None, out, next(iter(folders.values())) / "predictions.csv")
    comparison = _compare(options, inputs, found)
    write_metrics(folders, comparison, _about(options, inputs), resamples=options.bootstrap, seed=options.seed)
    page = _page(options, inputs, comparison, predictor)
    write_atomically(out / "report.html", render(page))
    if len(found) > 1:
        write_atomically(
            out / "comparison.md", tables.comparison_markdown(comparison, page.title, page.part, page.notes)
        )
        write_atomically(out / "comparison.csv", tables.comparison_csv(comparison))
    return Evaluation(inputs.part, found, comparison, out, out / "report.html")


def _default_out(options: EvaluateOptions, inputs: Inputs) -> Path:
    """evaluation/ in the run, or comparison/ beside the runs; other parts than the test part have their own."""
    kind = "" if inputs.part.name == "test" else f"-{inputs.part.name}"
    kind += f"-without-{options.without}" if options.without else ""
    if len(inputs.runs) == 1:
        return inputs.runs[0].folder / f"evaluation{kind}"
    return common_folder([run.folder for run in inputs.runs]) / f"comparison{kind}"


def _compare(options: EvaluateOptions, inputs: Inputs, found: Mapping[str, Predicted]) -> Comparison:
    """Scores and tests on the pairs that have labels."""
    keep = inputs.scored
    results = [
        RunResult(
            name=run.name,
            head=run.head,
            recipe=run.recipe,
            probabilities=found[run.name].probabilities[keep],
            without={name: of[keep] for name, of in found[run.name].without.items()},
            parts={name: of[keep] for name, of in found[run.name].parts.items()},
            validation=run.validation(options.checkpoint),
            parameters=run.summary.get("trained_parameters"),
            seconds=run.summary.get("seconds_per_epoch"),
            history=run.history,
        )
        for run in inputs.runs
    ]
    train_texts, train_labels = inputs.train
    texts = [inputs.members[place].text for place in keep.tolist()]
    return compare(
        inputs.labels[keep],
        inputs.label_names,
        results,
        baselines(train_texts, train_labels, texts, len(inputs.label_names)) if train_texts else {},
        reference=options.baseline,
        resamples=options.bootstrap,
        seed=options.seed,
    )


def _about(options: EvaluateOptions, inputs: Inputs) -> dict[str, object]:
    """What every metrics.json says of the evaluation."""
    return {
        "data": str(options.data),
        "cache": str(options.cache),
        "split": inputs.part.name,
        "checkpoint": options.checkpoint,
        "withheld": options.without,
        "pairs": len(inputs.labels),
        "labelled": len(inputs.scored),
        "shared_with_train": {"texts": inputs.shared.texts, "images": inputs.shared.images},
        "notes": inputs.notes,
    }


def _page(options: EvaluateOptions, inputs: Inputs, comparison: Comparison, predictor: Predictor) -> Page:
    heads = comparison.heads
    what = f"{len(heads)} fusion heads" if len(heads) > 1 else heads[0].name
    attending, maps = _attention(options, inputs, comparison, predictor)
    return Page(
        title=f"{what} on {options.data.resolve().name}",
        part=inputs.part.name,
        facts=_facts(options, inputs, comparison),
        notes=inputs.notes,
        comparison=comparison,
        modalities=modalities(comparison),
        mistakes=most_confident_mistakes(comparison, [inputs.members[place] for place in inputs.scored.tolist()]),
        attention=maps,
        attention_of=attending,
    )


def _facts(options: EvaluateOptions, inputs: Inputs, comparison: Comparison) -> list[str]:
    n, part, seeds = len(comparison.labels), inputs.part.name, {len(row.runs) for row in comparison.heads}
    facts = [f"{n:,} {'' if part == 'all' else part + ' '}pairs", f"{len(inputs.label_names)} classes"]
    if seeds != {1}:
        facts.append(f"{'–'.join(str(count) for count in sorted({min(seeds), max(seeds)}))} seeds a head")
    made_by = inputs.store.fingerprint
    told = (("backbone", "{}"), ("image_size", "{} px"), ("pooling", "pooling {}"))
    facts.append(", ".join(how.format(made_by[name]) for name, how in told if name in made_by))
    return [*facts, f"parameters of the {options.checkpoint} epoch"]


def _attention(
    options: EvaluateOptions, inputs: Inputs, comparison: Comparison, predictor: Predictor
) -> tuple[str, list[Example]]:
    """A head that attends over image regions, the page's own if it does, and what it looks at in a few random pairs."""
    attending = [row for row in (comparison.focus, *comparison.heads) if head_class(row.runs[0].head).takes_regions]
    status = inputs.store.status[inputs.store.rows(inputs.part.ids)]
    places = [place for place in inputs.scored.tolist() if status[place] == OK]
    if not attending or not places or len(inputs.store.shape) == 1 or options.without == "image":
        return "", []
    chosen = np.sort(np.random.default_rng(options.seed).permutation(places)[:MOST_ATTENTION])
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
