"""Learning rates, their schedules, fixed backbones, and the average of the weights."""

import pytest
import tiny
import torch
from training_cases import TRANSFORMER, trainer

from divse.models import TwoTower
from divse.training.command_line import parse
from divse.training.config import OptimConfig
from divse.training.optim import Average, build_optimizer, schedule


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


def test_rates_fall_from_layer_to_layer():
    words = tiny.arguments(**TRANSFORMER, optim__image_scale=0.5, image__layer_decay=0.1)
    config, _ = parse(words)
    model = TwoTower(config, 9)
    optimizer = build_optimizer(model, config)
    rate = {id(p): group["lr"] for group in optimizer.param_groups for p in group["params"]}
    network = "image.encoder.backbone.network"
    last = len(model.get_submodule(f"{network}.blocks")) - 1
    rates = [
        rate[id(model.get_parameter(f"{network}.{name}"))]
        for name in (f"blocks.{last}.mlp.fc1.weight", f"blocks.{last - 1}.mlp.fc1.weight")
    ]
    assert rates == pytest.approx([5e-4, 5e-5])
    assert rate[id(model.get_parameter(f"{network}.patch_embed.proj.weight"))] < rates[1]


def test_backbones_stay_fixed_in_the_first_epochs(tmp_path):
    run = trainer(tmp_path, optim__frozen_epochs=1, train__epochs=2)
    backbone = run.model.image.encoder.backbone
    head = run.model.image.head
    states = []
    for _ in range(2):
        states.append([{n: t.clone() for n, t in m.state_dict().items()} for m in (backbone, head)])
        run.run_epoch()
        run.validate(0.0)
    states.append([m.state_dict() for m in (backbone, head)])

    def moved(epoch, module):
        before, after = states[epoch][module], states[epoch + 1][module]
        return {name for name, tensor in after.items() if not torch.equal(tensor, before[name])}

    assert not moved(0, 0)  # its batch norms gather no statistics either
    assert "0.0.weight" in moved(1, 0) and "0.1.running_mean" in moved(1, 0)
    assert "slots" in moved(0, 1) and "slots" in moved(1, 1)
