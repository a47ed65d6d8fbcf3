"""Trainers of the tiny run, with what tests of training do to them."""

import hashlib

import pytest
import tiny
import torch

from divse import DivSE
from divse.encoder import build_tokenizer, vocabulary_size
from divse.models import TwoTower
from divse.training import distributed
from divse.training.command_line import parse
from divse.training.loop import Trainer
from divse.training.losses import similarity_options
from divse.training.run import load_splits
from divse.training.split import Split

EXTRAS = {"data__word_drop": 0.2, "data__augment": ["shift"], "optim__ema": 0.9}
# an image encoder without batch norms and dropout: what it gives does not depend on the rest
TRANSFORMER = {
    "image__encoder": "timm",
    "image__name": "test_vit",
    "image__size": 160,
    "model__dropout": 0.0,
}


class Killed(Exception):
    pass


def trainer(folder, **changes):
    config, _ = parse(tiny.arguments(train__out=folder, **changes))
    torch.manual_seed(config.train.seed)
    data = load_splits(config)
    tokenizer = build_tokenizer(config.text, data["train"].captions)
    model = TwoTower(config, vocabulary_size(tokenizer), similarity=config.loss.similarity)
    model.to(config.train.device)
    encoder = DivSE(model, config, tokenizer, similarity_options(config.loss))
    with distributed.first_goes_first():
        train, val = (
            Split.prepare(data[name], tokenizer, model, config, folder / "features")
            for name in ("train", "val")
        )
    folder.mkdir(exist_ok=True)
    return Trainer(model, config, train, val, folder, keep=lambda: encoder.save_pretrained(folder))


def digest(folder):
    """Hash of what a run leaves behind."""
    names = ("model.safetensors", "last.safetensors", "log.jsonl")
    return {name: hashlib.sha256((folder / name).read_bytes()).hexdigest() for name in names}


def killed_after(steps, trainer):
    """Run a trainer until it dies in the middle of step number `steps`."""
    step = trainer.step
    left = iter(range(steps))

    def dying(batch):
        if next(left, None) is None:
            raise Killed
        return step(batch)

    trainer.step = dying
    with pytest.raises(Killed):
        trainer.fit()


def gradients(run, part=(0, 1)):
    """Loss and gradients of the first step -> (loss, {parameter: gradient})."""
    batch = next(run.train.batches.epoch(0, part=part))
    run.update.backbones.train(True)
    loss = run.update.backward(batch, 0).total.detach()
    distributed.average_gradients(run.model)
    named = run.model.named_parameters()
    return loss, {name: p.grad for name, p in named if p.grad is not None}


def assert_alike(a, b, slack=2e-6):
    """Two results of `gradients` that differ by rounding alone."""
    torch.testing.assert_close(a[0], b[0], atol=slack, rtol=0)
    assert a[1].keys() == b[1].keys()
    for name, gradient in a[1].items():
        torch.testing.assert_close(gradient, b[1][name], atol=slack, rtol=1e-4, msg=name)
