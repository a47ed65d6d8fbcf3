"""The training loop: steps, validation, checkpoints; a resumed run repeats bit for bit.

Everything random is either torch's generator, whose state is in the checkpoint, or follows from
(seed, epoch, step) alone, so the position in the data is just two integers.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from time import perf_counter

import numpy as np
import torch
from torch.nn.utils import clip_grad_norm_

from divse.data import Batch
from divse.models import TwoTower
from divse.models.weights import read_tensors, write_tensors
from divse.training import checkpoint as files
from divse.training.config import Config
from divse.training.log import Log
from divse.training.losses import LossParts, set_loss
from divse.training.optim import Average, build_optimizer, schedule, set_learning_rate
from divse.training.report import evaluate, summary
from divse.training.split import Split, drop_words


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
        self.optimizer = build_optimizer(model, config.optim)
        self.average: Average | None = None
        self.progress = Progress()
        if (folder / files.LAST).exists():
            self.restore()
        else:
            train.fit_statistics(model)
            if config.optim.ema:
                self.average = Average(model.trained_state(), config.optim.ema)
        self.log = Log(folder, self.progress.lines, config.train.tensorboard)

    def fit(self) -> None:
        """Train until the last epoch; validate and write a checkpoint after each."""
        if not self.progress.lines:
            self.validate(0.0)
        while self.progress.epoch < self.config.train.epochs:
            start = perf_counter()
            self.run_epoch()
            self.validate(perf_counter() - start)
            self.save()

    def run_epoch(self) -> None:
        """Run the remaining steps of the present epoch, with a bar of loss and R@1."""
        from tqdm import tqdm

        progress, every = self.progress, self.config.train.checkpoint_steps
        title = f"epoch {progress.epoch + 1}/{self.config.train.epochs}"
        bar = tqdm(total=self.steps, initial=progress.step, desc=title, disable=None, leave=False)
        self.model.train()
        for batch in self.train.batches.epoch(progress.epoch, progress.step):
            self.count(self.step(batch))
            bar.set_postfix(self.averages(), refresh=False)
            bar.update()
            if every and progress.step % every == 0 and progress.step < self.steps:
                self.save()
        bar.close()

    def step(self, batch: Batch) -> LossParts:
        """One update of the weights."""
        config, progress = self.config, self.progress
        done = progress.epoch * self.steps + progress.step
        set_learning_rate(
            self.optimizer,
            schedule(
                done,
                self.steps * config.train.epochs,
                self.steps * config.optim.warmup_epochs,
                config.optim.schedule,
            ),
        )
        parts = self.loss(batch)
        self.optimizer.zero_grad(set_to_none=True)
        parts.total.backward()  # type: ignore[no-untyped-call]
        if config.optim.clip:
            clip_grad_norm_(self.model.parameters(), config.optim.clip)
        self.optimizer.step()
        if self.average:
            self.average.update(self.model.trained_state(), done)
        return parts

    def loss(self, batch: Batch) -> LossParts:
        """Loss of a batch, the towers under autocast if asked to, the loss itself in fp32."""
        config = self.config
        rng = np.random.default_rng([config.train.seed, self.progress.epoch, self.progress.step])
        if config.data.word_drop:
            vocabulary = int(self.train.batches.tokens.max()) + 1  # it is made of these captions
            batch = drop_words(batch, config.data.word_drop, vocabulary, rng)
        bf16 = config.train.precision == "bf16"
        with torch.autocast(self.device.type, torch.bfloat16, enabled=bf16):
            images, texts = self.train.embed(self.model, batch, rng)
        name = "info_nce" if self.progress.epoch < config.loss.warmup_epochs else config.loss.name
        return set_loss(
            images,
            texts,
            self.train.positives(batch).to(self.device),
            config.loss,
            name=name,
            impl=config.train.impl,
        )

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

    def validate(self, seconds: float) -> None:
        """Evaluate the (averaged) weights, log and print them, and keep them if they are best."""
        progress, live = self.progress, None
        if self.average:
            live = {k: t.clone() for k, t in self.model.trained_state().items()}
            self.model.load_state_dict(self.average.tensors, strict=False)
        figures = evaluate(*self.val.encode(self.model), self.val.data, self.config)
        averages = self.averages()
        progress.epoch += progress.step > 0
        best = figures["rsum"] > progress.best
        if best:
            progress.best = figures["rsum"]
            self.keep()
        if live is not None:
            self.model.load_state_dict(live, strict=False)
        self.log.write({"epoch": progress.epoch, **averages, **figures})
        print(summary(progress.epoch, averages, figures, best, seconds), flush=True)
        progress.lines, progress.step, progress.loss, progress.r1 = self.log.lines, 0, 0.0, 0.0

    def save(self) -> None:
        """Write the whole state of the run, atomically."""
        tensors = {
            **files.with_prefix("model", self.model.trained_state()),
            **files.with_prefix("optimizer", files.optimizer_tensors(self.optimizer)),
            **files.with_prefix("random", files.random_state(self.device)),
        }
        if self.average:
            tensors |= files.with_prefix("average", self.average.tensors)
        write_tensors(self.folder / files.LAST, tensors, asdict(self.progress))

    def restore(self) -> None:
        """Take up the state that `save` wrote."""
        tensors, record = read_tensors(self.folder / files.LAST)
        self.model.load_state_dict(files.below("model", tensors), strict=False)
        files.load_optimizer(self.optimizer, files.below("optimizer", tensors))
        files.load_random_state(files.below("random", tensors), self.device)
        kept = {name: t.to(self.device) for name, t in files.below("average", tensors).items()}
        if kept:
            self.average = Average(kept, self.config.optim.ema)
        self.progress = Progress(**record)
