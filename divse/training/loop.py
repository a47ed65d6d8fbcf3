"""The training loop: epochs, validation, checkpoints; a resumed run repeats bit for bit.

Everything random is either torch's generator, whose state is in the checkpoint, or follows from
(seed, epoch, step) alone, so the position in the data is just two integers.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from time import perf_counter

import numpy as np

from divse.data import Batch
from divse.models import TwoTower
from divse.models.weights import read_tensors, write_tensors
from divse.training import checkpoint as files
from divse.training import distributed
from divse.training.ahead import one_ahead
from divse.training.config import Config
from divse.training.log import Log
from divse.training.losses import LossParts
from divse.training.report import evaluate, summary
from divse.training.split import Split
from divse.training.step import Step


@dataclass
class Progress:
    """Where a run stands; saved with every checkpoint."""

    epoch: int = 0
    step: int = 0  # within the epoch
    best: float = -1.0  # validation RSUM
    lines: int = 0  # of the log
    loss: float = 0.0  # sums over the steps of the epoch so far
    r1: float = 0.0


class Trainer:
    """Fits a model to one split, validates on another, and keeps the best weights.

    Args:
        model: On its device.
        config: All settings.
        train: Training split.
        val: Validation split.
        folder: The run folder; its last checkpoint, if any, is continued.
        keep: Called when the weights (then in the model) are the best so far.

    """

    def __init__(
        self,
        model: TwoTower,
        config: Config,
        train: Split,
        val: Split,
        folder: Path,
        keep: Callable[[], None],
    ) -> None:
        self.model, self.config, self.folder, self.keep = model, config, folder, keep
        self.train, self.val = train, val
        self.device = next(model.parameters()).device
        self.steps = len(train.batches)
        if train.batches.batch_size < distributed.processes():
            raise ValueError(
                f"train.batch_size: got {train.batches.batch_size} pictures for "
                f"{distributed.processes()} processes, expected at least one for each"
            )
        self.progress = Progress()
        resumed = (folder / files.LAST).exists()
        distributed.draw_apart(config.train.seed)
        if not resumed:
            train.fit_statistics(model)
            distributed.start_alike(model)
        self.update = Step(model, config, train)
        if resumed:
            self.restore()
        self.first = distributed.rank() == 0  # the process that writes and prints
        if self.first:
            self.log = Log(folder, self.progress.lines, config.train.tensorboard)

    def fit(self) -> None:
        """Train until the last epoch; validate and write a checkpoint after each."""
        if not self.progress.lines:
            self.validate(perf_counter())
        while self.progress.epoch < self.config.train.epochs:
            start = perf_counter()
            self.run_epoch()
            self.validate(start)
            self.save()

    def run_epoch(self) -> None:
        """Run the remaining steps of the present epoch, with a bar of loss and R@1."""
        from tqdm import tqdm

        progress, every = self.progress, self.config.train.checkpoint_steps
        title = f"epoch {progress.epoch + 1}/{self.config.train.epochs}"
        hidden = None if self.first else True  # None: without a terminal
        bar = tqdm(total=self.steps, initial=progress.step, desc=title, disable=hidden, leave=False)
        self.update.backbones.train(progress.epoch >= self.config.optim.frozen_epochs)
        part = distributed.rank(), distributed.processes()
        for batch in one_ahead(self.train.batches.epoch(progress.epoch, progress.step, part)):
            self.count(self.step(batch))
            bar.set_postfix(self.averages(), refresh=False)
            bar.update()
            if every and progress.step % every == 0 and progress.step < self.steps:
                self.save()
        bar.close()

    def step(self, batch: Batch) -> LossParts:
        """One update of the weights."""
        return self.update(batch, self.progress.epoch, self.progress.step)

    def count(self, parts: LossParts) -> None:
        """Add the figures of one step; stop if the loss is not a number."""
        loss = float(parts.total.detach())
        if not np.isfinite(loss):
            raise FloatingPointError(
                f"the loss is {loss} in epoch {self.progress.epoch + 1}, step "
                f"{self.progress.step + 1}: lower --optim.lr or raise --optim.warmup_epochs"
            )
        self.progress.loss += loss
        self.progress.r1 += float(parts.recall)
        self.progress.step += 1

    def averages(self) -> dict[str, float]:
        """Loss and text-to-image R@1 within the batch, means over the epoch so far."""
        steps = max(1, self.progress.step)
        return {
            "loss": round(self.progress.loss / steps, 4),
            "R@1": round(100 * self.progress.r1 / steps, 1),
        }

    def validate(self, start: float) -> None:
        """Evaluate the (averaged) weights, log and print them, and keep them if they are best.

        `start` is when the epoch began, for the time that the summary tells.
        """
        progress, averages = self.progress, self.averages()
        with self.averaged():
            images, texts = self.val.encode(self.model)
            learned = self.model.similarity_parameters()
            judge = (images, texts, self.val.data, self.config, learned)
            figures = distributed.shared(evaluate(*judge) if self.first else None)
            best = figures["rsum"] > progress.best
            if best and self.first:
                self.keep()
        progress.best = max(progress.best, figures["rsum"])
        progress.epoch += progress.step > 0
        if self.first:
            self.log.write({"epoch": progress.epoch, **averages, **figures})
        seconds = perf_counter() - start
        left = seconds * (self.config.train.epochs - progress.epoch)
        print(summary(progress.epoch, averages, figures, best, seconds, left), flush=True)
        progress.lines, progress.step, progress.loss, progress.r1 = progress.lines + 1, 0, 0.0, 0.0

    @contextmanager
    def averaged(self) -> Iterator[None]:
        """Put the average of the weights, if there is one, into the model for a while."""
        if self.update.average is None:
            yield
            return
        live = {name: t.clone() for name, t in self.model.trained_state().items()}
        self.model.load_state_dict(self.update.average.tensors, strict=False)
        yield
        self.model.load_state_dict(live, strict=False)

    def save(self) -> None:
        """Write the whole state of the run, atomically."""
        states = distributed.collected(files.random_state(self.device))
        if not self.first:
            return
        tensors = self.update.state()
        for number, state in enumerate(states):
            tensors |= files.with_prefix(f"random.{number}", state)
        write_tensors(self.folder / files.LAST, tensors, asdict(self.progress))

    def restore(self) -> None:
        """Take up the state that `save` wrote."""
        tensors, record = read_tensors(self.folder / files.LAST)
        self.update.load(tensors, self.folder / files.LAST)
        state = files.below(f"random.{distributed.rank()}", tensors)
        if state:  # none for processes that were not there when it was written
            files.load_random_state(state, self.device)
        self.progress = Progress(**record)
