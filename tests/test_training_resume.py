"""A run that dies, whenever and however, goes on as if it had not."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import tiny
import torch
from training_cases import EXTRAS, digest, killed_after, trainer

from divse.training.run import choose_kernels

ROOT = Path(__file__).resolve().parent.parent


@pytest.mark.parametrize(
    "more",
    [
        {"train__checkpoint_steps": 0, "optim__frozen_epochs": 1},
        {"train__checkpoint_steps": 1},
        {"train__checkpoint_steps": 3, "train__sub_batch": 3},
    ],
)
def test_resume_repeats_bit_for_bit(tmp_path, more):
    """Killed in any step: with a checkpoint after each epoch, each step, every three steps."""
    settings = EXTRAS | {"train__epochs": 2} | more
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


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"model__dim": 16}, "last.safetensors do not fit its settings: size mismatch"),
        ({"optim__text_scale": 0.5}, "the optimiser's state is that of other settings"),
    ],
)
def test_resuming_with_other_settings_is_refused(tmp_path, change, message):
    run = trainer(tmp_path, train__epochs=1)
    run.fit()
    with pytest.raises(ValueError, match=message):
        trainer(tmp_path, **change)


def test_a_checkpoint_that_cannot_be_read_is_named(tmp_path):
    trainer(tmp_path, train__epochs=1).fit()
    (tmp_path / "last.safetensors").write_bytes(b"nothing")
    with pytest.raises(ValueError, match=r"last.safetensors cannot be read .* is it whole"):
        trainer(tmp_path)


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
