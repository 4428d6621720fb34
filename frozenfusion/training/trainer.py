"""The training loop: one epoch after another of one model on one dataset.

Shapes: b pairs of a batch, n pairs of a part, c classes.
"""

from __future__ import annotations

import contextlib
import math
import time
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from frozenfusion.evaluation.metrics import confusion_matrix, scores
from frozenfusion.fusion.base import HeadOutput
from frozenfusion.model.classifier import PairClassifier
from frozenfusion.model.dataset import PairDataset
from frozenfusion.model.network import drop_modalities
from frozenfusion.store.reader import Rows
from frozenfusion.text.batching import batches_by_length, batches_in_order_of_length
from frozenfusion.training.config import TrainConfig
from frozenfusion.training.optimizer import build_optimizer, rates, set_rates
from frozenfusion.utils import distributed
from frozenfusion.utils.device import computing_in, on_one_thread
from frozenfusion.utils.errors import UserError
from frozenfusion.utils.progress import Progress

VALIDATION_BATCH_SIZE = 64
STATISTICS_BATCH_SIZE = 256
SECONDS_BETWEEN_LOOKS = 2.0  # at the running loss: each look waits for the device


class Diverged(UserError):
    """A loss that is not finite."""


class Trainer:
    """Trains a model on the pairs `train` (n,) of a dataset and measures it on `val` (n,), which may be empty.

    An epoch depends on the parameters, the optimiser's state, the seed and its number alone, so a training that goes
    on from a checkpoint takes the same steps. `autocast` is the arithmetic of the forward pass, float32 if None;
    `weights` (pairs of the dataset,) is what each weighs in the loss, alike if None.

    Where several processes train (`distributed`) each computes its part of every batch: losses and gradients are means
    over the processes, and the mean is that of the whole batch.
    """

    def __init__(
        self,
        model: PairClassifier,
        dataset: PairDataset,
        train: Rows,
        val: Rows,
        config: TrainConfig,
        *,
        device: torch.device,
        autocast: torch.dtype | None = None,
        weights: NDArray[np.float32] | None = None,
    ) -> None:
        self.model, self._weights = model.to(device), weights
        self._dataset, self._train, self._val = dataset, train, val
        self._config, self._device, self._autocast = config, device, autocast
        if autocast is not None and device.type == "cpu" and model.text_encoder is not None:
            # torch's fused attention is slow backwards in bf16 on a CPU (measured: docs/performance.md)
            model.text_encoder.set_attn_implementation("eager")
        if model.standardise is not None:
            model.standardise.measure(self._images(train))
        model.head.label_smoothing, model.head.focal = config.label_smoothing, config.focal
        self.optimizer = build_optimizer(model, config)
        self.class_weights = self._inverse_frequencies() if config.class_weights else None
        # A head's steps are so small that threads wait for each other longer than they compute, above all beside other
        # work; and one adds numbers up in the same order on any machine.
        fine_tuned = model.text_encoder is not None and not model.config.freeze_text
        self._threads = contextlib.nullcontext if fine_tuned else on_one_thread
        self._outputs = torch.compile(model.outputs, dynamic=True) if config.compile else model.outputs
        self._drops = torch.Generator(device)
        if distributed.world() > 1:
            distributed.align(model.state_dict().values())
            model.modality_dropout = 0.0  # see _forward

    def epoch(self, number: int, progress: Progress) -> dict[str, Any]:
        """Train one epoch (1 is the first) and validate: a line of metrics.jsonl, None where nothing is measured.

        Raises UserError if the loss is not finite.
        """
        began = time.perf_counter()
        config = self._config
        with self._threads(), torch.random.fork_rng([self._device] if self._device.type == "cuda" else []):
            own = filter(None, [distributed.rank()])  # the first one draws what one alone does
            torch.manual_seed(_seed(config.seed, number, *own))
            self._drops.manual_seed(_seed(config.seed, number))
            measured = {**self._train_epoch(number, progress), **self.validate(number)}
        lr = rates(self.model, config, number)
        return {"epoch": number, **lr, **measured, "seconds": time.perf_counter() - began}

    def _train_epoch(self, number: int, progress: Progress) -> dict[str, Any]:
        batches = batches_by_length(
            self._dataset.lengths[self._train], self._config.batch_size, seed=self._config.seed, epoch=number
        )
        losses = torch.zeros(len(batches), device=self._device)
        right = torch.zeros((), dtype=torch.int64, device=self._device)
        looked, shown = time.monotonic(), {"epoch": f"{number}/{self._config.epochs}"}
        self.model.train()
        for step, rows in enumerate(self._dataset.in_turn(batches, self._train)):
            loss, logits, labels = self._forward(self._train[rows], self._outputs)
            first = step - step % self._config.accumulate
            self._learn(loss, number, step, batches[first : first + self._config.accumulate], len(batches))
            losses[step] = loss.detach()
            right += (logits.argmax(dim=1) == labels).sum()
            if time.monotonic() - looked > SECONDS_BETWEEN_LOOKS:
                if distributed.world() == 1:  # several look together, when the epoch ends
                    self._require_finite(number, losses[: step + 1], batches)
                looked, shown["loss"] = time.monotonic(), f"{float(losses[: step + 1].mean()):.3f}"
            progress.update(len(rows), **shown)
        losses, right = distributed.mean(losses), distributed.total(right)
        self._require_finite(number, losses, batches)
        distributed.align(self.model.buffers())  # which a head of a user's own may change
        sizes = torch.tensor([len(rows) for rows in batches], device=self._device)
        count = len(self._train)
        return {"train_loss": float((losses * sizes).sum()) / count, "train_accuracy": int(right) / count}

    def _learn(self, loss: Tensor, number: int, step: int, group: list[Rows], count: int) -> None:
        """Add a batch's gradient to that of its group, whose pairs weigh alike; the group's last batch ends the step.

        The last group of an epoch may be smaller.
        """
        config, place = self._config, step % self._config.accumulate
        if place == 0:
            self.optimizer.zero_grad(set_to_none=True)
        if len(group) > 1:
            loss = loss * (len(group[place]) / sum(map(len, group)))
        loss.backward()
        if place < len(group) - 1:
            return
        distributed.average_gradients(self.model.parameters())
        if config.clip:
            torch.nn.utils.clip_grad_norm_(self.model.parameters(), config.clip)
        set_rates(self.optimizer, config, number, (step + 1) / count)
        self.optimizer.step()

    def _images(self, rows: Rows) -> Iterator[Tensor]:
        """The image features of the pairs at some positions that have an image, in parts."""
        present = rows[self._dataset.present[torch.from_numpy(rows), 1].cpu().numpy()]
        for start in range(0, len(present), STATISTICS_BATCH_SIZE):
            yield self._dataset.images[present[start : start + STATISTICS_BATCH_SIZE]]

    def _forward(self, rows: Rows, outputs: Callable[..., HeadOutput]) -> tuple[Tensor, Tensor, Tensor]:
        """Loss of the batch at some rows of the dataset; logits and labels of those of its pairs that count here."""
        places, counted = distributed.own_part(np.arange(len(rows)))
        batch, model = self._dataset.batch(rows[places]), self.model
        present = batch.present
        if distributed.world() > 1:
            model.head.over_processes = partial(_mean_of, counted)
            if model.training and self._config.modality_dropout:  # drawn for the whole batch, whoever computes it
                everyone = self._dataset.present[torch.from_numpy(rows).to(self._device)]
                dropped = drop_modalities(everyone, self._config.modality_dropout, self._drops)
                present = dropped[torch.from_numpy(places).to(self._device)]
        with computing_in(self._autocast, self._device):
            output = outputs(batch.text, batch.image, present)
        loss = self._loss(output, batch.labels, rows, places)
        return loss if counted else loss * 0, output.logits[:counted], batch.labels[:counted]

    def _loss(self, output: HeadOutput, labels: Tensor, rows: Rows, places: Rows) -> Tensor:
        """The head's loss; of pairs that weigh differently, its mean over those of each weight, by what they weigh."""
        if self._weights is None:
            return self.model.loss(output, labels, self.class_weights)
        weights = self._weights[rows]
        weighed = []
        for weight in np.unique(weights):
            chosen = torch.from_numpy(weights[places] == weight).to(labels.device)
            share = float(weights[weights == weight].sum() / weights.sum())
            known = torch.where(chosen, labels, -1)  # which stands for none
            weighed.append(share * self.model.loss(output, known, self.class_weights))
        return torch.stack(weighed).sum()

    @torch.inference_mode()
    def validate(self, number: int) -> dict[str, Any]:
        """Loss, accuracy and macro F1 on the validation part after epoch `number`; None each where there is none."""
        if not len(self._val):
            return dict.fromkeys(("val_loss", "val_accuracy", "val_macro_f1"))
        self.model.eval()
        total = 0.0
        classes = self.model.config.classes
        counts = torch.zeros((classes, classes), dtype=torch.int64)
        parts = batches_in_order_of_length(self._dataset.lengths[self._val], VALIDATION_BATCH_SIZE)
        for rows in self._dataset.in_turn(parts, self._val):
            loss, logits, labels = self._forward(self._val[rows], self.model.outputs)
            total += float(loss) * len(rows)
            predictions = logits.argmax(dim=1).cpu().numpy()
            counts += torch.from_numpy(confusion_matrix(labels.cpu().numpy(), predictions, classes))
        total = float(distributed.mean(torch.tensor(total, dtype=torch.float64)))
        if not math.isfinite(total):
            raise self._not_finite(f"epoch {number}: the validation loss is {total}")
        found = scores(distributed.total(counts).numpy())
        return {
            "val_loss": total / len(self._val),
            "val_accuracy": float(found.accuracy),
            "val_macro_f1": float(found.macro_f1),
        }

    def _require_finite(self, number: int, losses: Tensor, batches: list[Rows]) -> None:
        bad = torch.nonzero(~losses.isfinite())
        if not len(bad):
            return
        step = int(bad[0])
        rows = self._train[batches[step]]
        image = self._dataset.batch(rows).image.flatten(1).isfinite().all(dim=1)
        if not image.all():
            first = self._dataset.ids[int(rows[int(torch.nonzero(~image)[0])])]
            raise UserError(
                f"the cached image features of {first} are not finite: check the feature file with "
                "python extract_features.py --verify FILE, or make it anew with --rebuild --dtype float32"
            )
        raise self._not_finite(f"epoch {number}, step {step + 1} of {len(batches)}: the loss is {float(losses[step])}")

    def _not_finite(self, what: str) -> UserError:
        kept = "the epochs before are kept" if self._autocast is None else "the epochs before are kept; or float32"
        rates = {name: getattr(self._config, name) or 0.0 for name in ("lr", "text_lr", "head_lr")}
        name = max(rates, key=lambda name: rates[name])
        return Diverged(f"{what}: train with a lower `{name}` than {rates[name]:g} in another `run` ({kept})")

    def _inverse_frequencies(self) -> Tensor:
        """Weight of each class, (c,), n / (c * its count): 1 on average over the training pairs."""
        labels = self._dataset.labels[torch.from_numpy(self._train).to(self._device)]
        counts = torch.bincount(labels, minlength=self.model.config.classes).clamp_min(1)
        return len(labels) / (len(counts) * counts.float())


def _seed(*parts: int) -> int:
    """A seed that follows from numbers."""
    return int(np.random.SeedSequence(parts).generate_state(1)[0])


def _mean_of(counted: int, shares: Tensor) -> Tensor:
    """The mean over processes of what their pairs weigh, in one in which so many count."""
    return distributed.mean(shares if counted else shares * 0)
