import hashlib
import json
import os
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import tiny
import torch

from divse import DivSE
from divse.data.packed import write_packed
from divse.encoder import build_tokenizer, vocabulary_size
from divse.models import TwoTower
from divse.models.weights import read_tensors, write_atomically, write_tensors
from divse.training.batch_scores import positive_mask
from divse.training.command_line import parse
from divse.training.config import OptimConfig
from divse.training.feature_store import FeatureStore
from divse.training.log import Log
from divse.training.loop import Trainer
from divse.training.losses import similarity_options
from divse.training.optim import Average, build_optimizer, schedule
from divse.training.run import choose_kernels, load_splits
from divse.training.split import Split, drop_words

ROOT = Path(__file__).resolve().parent.parent


class Killed(Exception):
    pass


def trainer(folder, **changes):
    config, _ = parse(tiny.arguments(train__out=folder, **changes))
    torch.manual_seed(config.train.seed)
    data = load_splits(config)
    tokenizer = build_tokenizer(config.text, data["train"].captions)
    model = TwoTower(config, vocabulary_size(tokenizer)).to(config.train.device)
    encoder = DivSE(model, config, tokenizer, similarity_options(config.loss))
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


EXTRAS = {"data__word_drop": 0.2, "data__augment": ["shift"], "optim__ema": 0.9}


@pytest.mark.parametrize("every", [0, 1, 3])
def test_resume_repeats_bit_for_bit(tmp_path, every):
    """Killed in any step: with a checkpoint after each epoch, each step, every three steps."""
    settings = EXTRAS | {"train__checkpoint_steps": every, "train__epochs": 2}
    trainer(tmp_path / "whole", **settings).fit()
    expected = digest(tmp_path / "whole")
    for steps in (0, 2, 5):  # of 2 epochs of 4 steps
        folder = tmp_path / f"killed-{steps}"
        killed_after(steps, trainer(folder, **settings))
        trainer(folder, **settings).fit()
        assert digest(folder) == expected, f"killed in step {steps}"


@pytest.mark.gpu
@pytest.mark.filterwarnings("default")  # torch names operations that may not repeat; see if so
def test_resume_repeats_bit_for_bit_on_a_gpu(tmp_path):
    choose_kernels(True)
    settings = EXTRAS | {"train__epochs": 2, "train__device": "cuda", "model__dim": 32}
    try:
        trainer(tmp_path / "whole", **settings).fit()
        killed_after(5, trainer(tmp_path / "killed", **settings))
        trainer(tmp_path / "killed", **settings).fit()
    finally:
        torch.use_deterministic_algorithms(False)
    assert digest(tmp_path / "killed") == digest(tmp_path / "whole")


def test_resume_after_sigkill(tmp_path):
    """The real thing: processes of train.py, one of them killed by the system."""
    words = tiny.arguments(**EXTRAS, train__checkpoint_steps=2, train__epochs=10)
    environment = os.environ | {"OMP_NUM_THREADS": "1"}

    def start(*arguments):
        command = [sys.executable, "train.py", *arguments]
        return subprocess.Popen(command, cwd=ROOT, env=environment, stdout=subprocess.PIPE)

    whole = start(*words, "--out", str(tmp_path / "whole"))
    victim = start(*words, "--out", str(tmp_path / "killed"))
    deadline = time.monotonic() + 400
    while not (tmp_path / "killed" / "last.safetensors").exists():
        assert victim.poll() is None and time.monotonic() < deadline
        time.sleep(0.002)
    victim.send_signal(signal.SIGKILL)
    assert victim.wait() == -signal.SIGKILL
    victim.stdout.close()
    assert not (tmp_path / "killed" / "test.json").exists()
    resumed = start("--resume", str(tmp_path / "killed"))
    for process in (whole, resumed):
        process.communicate(timeout=400)
        assert process.returncode == 0
    assert digest(tmp_path / "killed") == digest(tmp_path / "whole")
    assert (tmp_path / "killed" / "test.json").read_text() == (
        tmp_path / "whole" / "test.json"
    ).read_text()


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


def test_tensorboard_log(tmp_path):
    log = Log(tmp_path, tensorboard=True)
    log.write({"epoch": 1, "loss": 0.5})
    assert list((tmp_path / "tensorboard").iterdir())


def test_log_drops_lines_past_the_checkpoint(tmp_path):
    log = Log(tmp_path)
    for epoch in range(3):
        log.write({"epoch": epoch})
    again = Log(tmp_path, lines=1)
    again.write({"epoch": 9})
    lines = (tmp_path / "log.jsonl").read_text().splitlines()
    epochs = [json.loads(line)["epoch"] for line in lines]
    assert epochs == [0, 9]


def test_atomic_write_leaves_the_old_file(tmp_path, monkeypatch):
    path = tmp_path / "file"
    write_atomically(path, b"old")

    def fail(_):
        raise OSError("disk full")

    monkeypatch.setattr("os.fsync", fail)
    with pytest.raises(OSError, match="disk full"):
        write_atomically(path, b"new")
    assert path.read_bytes() == b"old"


def test_tensors_of_every_kind(tmp_path):
    tensors = {
        "half": torch.randn(3, 2).half(),
        "count": torch.tensor(7),
        "bytes": torch.arange(5, dtype=torch.uint8),
        "slice": torch.randn(4, 4).T[1:],
    }
    write_tensors(tmp_path / "t", tensors, {"epoch": 3})
    read, record = read_tensors(tmp_path / "t")
    assert record == {"epoch": 3}
    assert all(torch.equal(read[name], tensor) for name, tensor in tensors.items())


def test_schedule():
    def shares(epoch_steps, epochs, **settings):
        config = OptimConfig(**settings)
        steps = range(epoch_steps * epochs)
        return [schedule(config, step, epoch_steps, epochs) for step in steps]

    cosine = shares(2, 5, warmup_epochs=1)
    assert cosine[:3] == pytest.approx([1 / 3, 2 / 3, 1])
    assert cosine[2:] == sorted(cosine[2:], reverse=True) and cosine[-1] < 0.05
    assert shares(2, 5, schedule="constant") == [1] * 10
    steps = shares(2, 5, schedule="step", step_epochs=2, gamma=0.1)
    assert steps == pytest.approx([1] * 4 + [0.1] * 4 + [0.01] * 2)


def test_parameter_groups():
    config, _ = parse(tiny.arguments(optim__image_scale=0.1, optim__text_scale=10))
    model = TwoTower(config, 9)
    optimizer = build_optimizer(model, config)
    where = {id(p): group for group in optimizer.param_groups for p in group["params"]}
    assert len(where) == len(list(model.parameters()))
    group = {name: where[id(p)] for name, p in model.named_parameters()}
    assert group["text.encoder.words.weight"]["lr"] == pytest.approx(1e-2)
    assert group["image.encoder.backbone.0.0.weight"]["lr"] == pytest.approx(1e-4)
    assert group["image.project.weight"]["lr"] == pytest.approx(1e-3)
    assert group["image.project.weight"]["weight_decay"] == config.optim.weight_decay
    assert group["image.project.bias"]["weight_decay"] == 0
    assert group["text.head.slots"]["weight_decay"] == 0


def test_average_forgets_early_weights():
    average = Average({"w": torch.zeros(1), "n": torch.tensor(0)}, decay=0.9)
    for step in range(200):
        average.update({"w": torch.ones(1), "n": torch.tensor(step)}, step)
    assert average.tensors["w"].item() == pytest.approx(1, abs=1e-3)
    assert average.tensors["n"].item() == 199


def test_dropped_words(tmp_path):
    batch = next(trainer(tmp_path).train.batches.epoch(0))
    dropped = drop_words(batch, 0.5, 20, [0])
    assert (dropped.lengths >= 1).all() and (dropped.lengths <= batch.lengths).all()
    assert dropped.tokens.shape[1] == dropped.lengths.max()
    real = torch.arange(dropped.tokens.shape[1]) < dropped.lengths[:, None]
    assert (dropped.tokens[real] > 0).all() and (dropped.tokens[~real] == 0).all()
    assert (dropped.tokens == 1).any()
    untouched = drop_words(batch, 1e-12, 20, [0])
    assert torch.equal(untouched.tokens, batch.tokens)
    all_gone = drop_words(batch, 0.9, 20, [1])
    assert (all_gone.lengths >= 1).all()


def test_positives_of_a_batch(tmp_path):
    split = trainer(tmp_path).train
    batch = next(split.batches.epoch(0))
    owners = split.labels(batch).positives()
    assert torch.equal(owners, batch.image_of_caption)
    own = positive_mask(owners, 4)
    assert own.shape == (4, 20)
    assert (own.sum(dim=0) == 1).all() and (own.sum(dim=1) == 5).all()
    # a caption that two pictures share, word for word, fits both
    same = np.arange(len(split.data.captions))
    first, last = int(batch.caption_index[0]), int(batch.caption_index[-1])
    same[last] = same[first]
    both = replace(split, same=same).labels(batch).positives()
    assert both[0, -1] and both[-1, 0] and both.sum() == own.sum() + 2


def test_feature_store(tmp_path):
    rows = np.arange(12, dtype=np.float16).reshape(6, 2)
    blocks = [(rows[:4], np.array([1, 3])), (rows[4:], np.array([2]))]
    store = FeatureStore(write_packed(tmp_path / "f.npy", lambda done: blocks))
    assert len(store) == 3
    local = FeatureStore.open(tmp_path / "f.npy").take(np.array([2, 0]), torch.device("cpu"))
    assert local.lengths.tolist() == [2, 1]
    assert local.values.tolist() == [[[8, 9], [10, 11]], [[0, 1], [0, 0]]]
    assert not list(tmp_path.glob("*.partial*"))


def test_frozen_encoders_run_once(tmp_path, monkeypatch):
    settings = tiny.frozen_image(tmp_path)
    run = trainer(tmp_path, **settings, train__epochs=1)
    grids, _ = run.train.encode(run.model)
    data = run.train.data
    direct = [run.model.images(torch.from_numpy(small(data.image(i)))[None]) for i in range(3)]
    torch.testing.assert_close(
        grids.values[:3], torch.cat([d.sets for d in direct]), atol=5e-3, rtol=0
    )
    monkeypatch.setattr(type(run.model.image.encoder), "local", None)  # must not be called again
    trainer(tmp_path, **settings, train__epochs=1).fit()


def small(picture):
    from divse.data.pictures import resize

    return resize(picture, 32).transpose(2, 0, 1).copy()


def test_mirrored_features_of_frozen_encoders(tmp_path):
    settings = tiny.frozen_image(tmp_path)
    run = trainer(tmp_path, **settings, train__epochs=1, data__augment=["flip"])
    assert len(run.train.image_stores) == 2 and len(run.val.image_stores) == 1
    plain, mirrored = (s.take(np.arange(3), run.device).values for s in run.train.image_stores)
    assert not torch.equal(plain, mirrored)
    pixels = torch.from_numpy(np.stack([small(run.train.data.image(i)) for i in range(3)]))
    expected = run.model.image.local(pixels.flip(3)).values
    torch.testing.assert_close(mirrored, expected, atol=2e-2, rtol=2e-2)
    run.fit()


def test_statistics_of_frozen_features(tmp_path):
    settings = tiny.frozen_image(tmp_path) | {
        "train__epochs": 1,
        "image__center": True,
        "image__level": 2,
        "image__pool": ["mean", "max", "detail"],
        "image__input_dropout": 0.3,
        "image__global_dropout": 0.5,
    }
    run = trainer(tmp_path / "run", **settings)
    tower = run.model.image.eval()
    local = run.train.image_stores[0].take(np.arange(16), run.device)
    pooled = tower.standardize(tower.encoder(local, None).pooled)
    torch.testing.assert_close(pooled.mean(dim=0), torch.zeros(pooled.shape[1]), atol=1e-5, rtol=0)
    for part in pooled.split(tower.encoder.pooled_groups, dim=1):
        assert part.norm(dim=1).mean().item() == pytest.approx(1, rel=1e-4)
    run.fit()
    kept = DivSE.from_pretrained(tmp_path / "run").model.image.standardize
    assert torch.equal(kept.mean, tower.standardize.mean)
