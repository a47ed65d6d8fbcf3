"""What a run writes: its log, and files that are whole whenever a process dies."""

import json

import pytest
import torch

from divse.models.weights import read_tensors, write_atomically, write_tensors
from divse.training.log import Log


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
