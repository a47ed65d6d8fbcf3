"""Two processes on a CPU: the loss, the gradients and the run of one with the joined batch."""

import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest
import tiny
import torch
from torch import nn
from training_cases import (
    EXTRAS,
    TRANSFORMER,
    assert_alike,
    digest,
    gradients,
    killed_after,
    trainer,
)

from divse.models.weights import read_tensors
from divse.training import distributed
from divse.training.acceleration import prepare
from divse.training.config import TrainConfig
from divse.training.loop import Trainer

ROOT = Path(__file__).resolve().parent.parent
CASES = {
    "plain": TRANSFORMER,
    "cached": TRANSFORMER | {"train__sub_batch": 1},
    "cached_bf16": TRANSFORMER | {"train__sub_batch": 1, "train__precision": "bf16"},
    # 5 pictures: the processes have 3 and 2, with other lengths of captions
    "odd": TRANSFORMER | {"train__batch_size": 5, "loss__name": "info_nce"},
    "words": TRANSFORMER | {"data__word_drop": 0.3, "data__equal_captions": True},
    "learned": TRANSFORMER | {"loss__similarity": "mp"},
    "batch_norm": {"model__dropout": 0.0},
}


def free_port():
    with socket.socket() as server:
        server.bind(("127.0.0.1", 0))
        return str(server.getsockname()[1])


def worker(number, folder, port):
    """What each of the two processes does; it leaves its results in `folder`."""
    torch.set_num_threads(1)
    place = {"RANK": number, "LOCAL_RANK": number, "WORLD_SIZE": 2}
    place |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
    os.environ |= {name: str(value) for name, value in place.items()}
    distributed.join(torch.device("cpu"))
    part = distributed.rank(), distributed.processes()
    found = {name: gradients(trainer(folder / name, **c), part) for name, c in CASES.items()}
    run = trainer(folder / "encode", **CASES["plain"])
    found["sets"] = [side.values for side in run.val.encode(run.model)]
    found["draw"] = torch.rand(1)  # dropout draws from this generator
    found["gathered"] = gathered()
    torch.save(found, folder / f"{number}.pt")
    # average of the weights, sub-batches and half precision together
    settings = EXTRAS | {"train__checkpoint_steps": 3, "train__epochs": 2, "train__sub_batch": 1}
    settings |= {"train__precision": "bf16"}
    trainer(folder / "whole", **settings).fit()
    killed_after(5, trainer(folder / "killed", **settings))
    trainer(folder / "killed", **settings).fit()
    assert distributed.leave() == (number == 0)


def gathered():
    """Rows and gradients of a gathered tensor, of which the second process has one row more."""
    own = torch.arange(2.0 + distributed.rank()).requires_grad_()
    rows, counts = distributed.gather(own, torch.ones(1, 2))
    (rows * torch.arange(5.0)).sum().backward()
    return rows.detach(), counts, own.grad / distributed.processes()


@pytest.fixture(scope="module")
def two(tmp_path_factory):
    """Folder of the two processes' results, and what each found."""
    folder = tmp_path_factory.mktemp("two")
    torch.multiprocessing.spawn(worker, (folder, free_port()), nprocs=2)
    return folder, [torch.load(folder / f"{i}.pt", weights_only=True) for i in (0, 1)]


@pytest.mark.parametrize("case", [name for name in CASES if name != "batch_norm"])
def test_loss_and_gradients_are_those_of_the_joined_batch(two, tmp_path, case):
    alone = gradients(trainer(tmp_path / "run", **CASES[case]))
    for found in two[1]:
        assert_alike(alone, found[case])
    if case == "learned":
        assert alone[1]["similarity.scale"].abs() > 0


def test_batch_norms_see_the_part_of_their_process(two, tmp_path):
    """As documented: not the loss of the joined batch, but one that all processes agree on."""
    alone = gradients(trainer(tmp_path / "run", **CASES["batch_norm"]))
    first, second = (found["batch_norm"] for found in two[1])
    assert_alike(first, second, slack=0)
    assert abs(alone[0] - first[0]) > 1e-5
    with pytest.raises(ValueError, match="sync_batchnorm works on CUDA devices alone"):
        prepare(nn.Sequential(nn.BatchNorm1d(2)), TrainConfig(sync_batchnorm=True))


def test_gathered_rows_and_their_gradients(two):
    for number, found in enumerate(two[1]):
        rows, counts, gradient = found["gathered"]
        assert rows.tolist() == [0, 1, 0, 1, 2] and counts.shape == (2, 2)
        assert gradient.tolist() == [[0, 1], [2, 3, 4]][number]


def test_processes_draw_apart_and_encode_together(two, tmp_path):
    first, second = two[1]
    assert first["draw"] != second["draw"]
    run = trainer(tmp_path / "run", **CASES["plain"])
    alone = [side.values for side in run.val.encode(run.model)]
    for found in two[1]:
        for whole, shared in zip(alone, found["sets"], strict=True):
            torch.testing.assert_close(shared, whole, atol=1e-6, rtol=0)


def test_a_killed_run_of_two_processes_repeats_bit_for_bit(two):
    folder, _ = two
    assert digest(folder / "killed") == digest(folder / "whole")
    tensors, _ = read_tensors(folder / "whole" / "last.safetensors")
    states = [tensors[f"random.{number}.cpu"] for number in (0, 1)]
    assert not torch.equal(*states)


def test_a_device_for_all_processes_is_refused(monkeypatch):
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(ValueError, match="got cuda:1 for several processes"):
        distributed.join(torch.device("cuda:1"))


def test_more_processes_than_pictures_are_refused(tmp_path, monkeypatch):
    run = trainer(tmp_path)
    monkeypatch.setattr(distributed, "processes", lambda: 5)
    with pytest.raises(ValueError, match="got 4 pictures for 5 processes"):
        Trainer(run.model, run.config, run.train, run.val, tmp_path, run.keep)


def test_torchrun(tmp_path):
    words = tiny.arguments(**TRANSFORMER, train__out=tmp_path / "two", train__epochs=1)
    launch = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", "train.py"]
    done = subprocess.run(
        [sys.executable, *launch, *words],
        cwd=ROOT,
        env=os.environ | {"OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=400,
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("epoch   1") == 1 and done.stdout.count("RSUM") == 3
    assert (tmp_path / "two" / "test.json").exists()
    run = trainer(tmp_path / "one", **TRANSFORMER, train__epochs=1)
    run.fit()
    alone, together = (
        read_tensors(tmp_path / name / "last.safetensors")[0] for name in ("one", "two")
    )
    for name, tensor in alone.items():
        if name.startswith("model."):
            torch.testing.assert_close(together[name], tensor, atol=1e-4, rtol=0, msg=name)
