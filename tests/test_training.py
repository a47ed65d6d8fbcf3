"""The training loop: it learns, keeps the best weights, and stops where it must."""

import json
import time

import pytest
import torch
from training_cases import trainer

from divse.models.weights import read_tensors
from divse.training.ahead import one_ahead
from divse.training.report import duration


def test_the_next_batch_is_read_ahead():
    read = []

    def numbers():
        for i in range(3):
            read.append(i)
            yield i
        raise OSError("no more pictures")

    batches = one_ahead(numbers())
    assert [next(batches), next(batches)] == [0, 1]
    assert next(batches) == 2 and read == [0, 1, 2]
    with pytest.raises(OSError, match="no more pictures"):
        next(batches)
    assert list(one_ahead(iter([]))) == []


def test_training_learns(tmp_path):
    run = trainer(
        tmp_path,
        train__epochs=16,
        optim__lr=1e-2,
        loss__name="info_nce",
        model__dropout=0.0,
    )
    run.fit()
    lines = [json.loads(line) for line in (tmp_path / "log.jsonl").read_text().splitlines()]
    assert [line["epoch"] for line in lines] == list(range(17))
    assert lines[-1]["loss"] < 0.7 * lines[1]["loss"]
    assert lines[-1]["R@1"] > 45  # chance: 25


def test_best_weights_are_kept(tmp_path, monkeypatch):
    rsums = iter([100.0, 300.0, 200.0])
    figures = dict.fromkeys([f"{w}_r{k}" for w in ("i2t", "t2i") for k in (1, 5, 10)], 0.0)
    monkeypatch.setattr("divse.training.loop.evaluate", lambda *_: figures | {"rsum": next(rsums)})
    run = trainer(tmp_path, train__epochs=2)
    kept = []
    run.keep = lambda: kept.append(run.model.text.project.bias.detach().clone())
    run.fit()
    assert len(kept) == 2  # the untrained model and the first epoch
    assert not torch.equal(kept[1], run.model.text.project.bias)
    assert run.progress.best == 300


def test_validation_uses_the_average_and_gives_the_weights_back(tmp_path):
    run = trainer(tmp_path, optim__ema=0.9, train__epochs=1)
    run.run_epoch()
    live = {name: t.clone() for name, t in run.model.state_dict().items()}
    run.validate(time.perf_counter())
    assert all(torch.equal(t, live[name]) for name, t in run.model.state_dict().items())
    kept, _ = read_tensors(tmp_path / "model.safetensors")
    assert all(torch.equal(t, run.update.average.tensors[name]) for name, t in kept.items())
    assert not torch.equal(kept["text.project.bias"], live["text.project.bias"])


def test_a_loss_that_is_no_number_stops_the_run(tmp_path):
    run = trainer(tmp_path)
    with torch.no_grad():
        run.model.text.project.bias[:] = float("nan")
    with pytest.raises(FloatingPointError, match="lower --optim.lr"):
        run.run_epoch()


def test_bf16_trains(tmp_path):
    run = trainer(tmp_path, train__precision="bf16", train__epochs=1)
    run.run_epoch()
    assert all(p.dtype == torch.float32 and p.isfinite().all() for p in run.model.parameters())


def test_warm_up_takes_the_soft_loss(tmp_path, monkeypatch):
    run = trainer(tmp_path, loss__warmup_epochs=1, train__epochs=2)
    names = []
    from divse.training import step

    real = step.set_loss
    monkeypatch.setattr(
        step, "set_loss", lambda *a, name, **k: names.append(name) or real(*a, name=name, **k)
    )
    run.fit()
    assert names == ["info_nce"] * 4 + [""] * 4


def test_durations_are_short_to_read():
    assert [duration(s) for s in (12.3, 240, 7500)] == ["12 s", "4 min", "2 h 05 min"]
