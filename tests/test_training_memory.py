"""Less memory, the same gradients: gradient caching, activation checkpointing, torch.compile."""

import pytest
import tiny
import torch
from torch import nn
from training_cases import TRANSFORMER, assert_alike, gradients, trainer

from divse.models import SetOutput
from divse.models.slot_attention import AggregationBlock
from divse.training.acceleration import prepare
from divse.training.config import TrainConfig
from divse.training.gradient_cache import backward, cut
from divse.training.losses import LossParts


def both_transformers(folder):
    """Settings of towers whose backbones are transformers."""
    bert = {"text__encoder": "transformer", "text__path": tiny.write_bert(folder / "bert")}
    return TRANSFORMER | bert


@pytest.mark.parametrize("pictures", [1, 3])
@pytest.mark.parametrize("loss", ["triplet", "info_nce"])
def test_gradient_caching_gives_the_same_gradients(tmp_path, pictures, loss):
    settings = TRANSFORMER | {"loss__name": loss, "data__word_drop": 0.2}
    plain = gradients(trainer(tmp_path / "plain", **settings))
    cached = gradients(trainer(tmp_path / "cached", **settings, train__sub_batch=pictures))
    assert_alike(plain, cached)


def test_gradient_caching_of_frozen_features(tmp_path):
    frozen = tiny.frozen_image(tmp_path / "weights") | {"model__dropout": 0.0}
    settings = frozen | {"data__augment": ["flip"]}
    plain = gradients(trainer(tmp_path / "plain", **settings))
    cached = gradients(trainer(tmp_path / "cached", **settings, train__sub_batch=3))
    assert_alike(plain, cached)


def test_gradient_caching_of_a_learned_similarity(tmp_path):
    settings = TRANSFORMER | {"loss__similarity": "mp"}
    plain = gradients(trainer(tmp_path / "plain", **settings))
    cached = gradients(trainer(tmp_path / "cached", **settings, train__sub_batch=2))
    assert_alike(plain, cached)
    assert cached[1]["similarity.scale"].abs() > 0


def test_gradient_caching_repeats_its_dropout(tmp_path, monkeypatch):
    run = trainer(tmp_path, **TRANSFORMER | {"model__dropout": 0.5}, train__sub_batch=2)
    embed, outputs = type(run.train).embed, []

    def recorded(*arguments):
        found = embed(*arguments)
        outputs.append(torch.cat([side.sets.detach() for side in found]))
        return found

    monkeypatch.setattr(type(run.train), "embed", recorded)
    gradients(run)
    assert len(outputs) == 4  # two sub-batches, twice
    assert torch.equal(outputs[0], outputs[2]) and torch.equal(outputs[1], outputs[3])


def test_batch_norms_count_each_sub_batch_once(tmp_path):
    run = trainer(tmp_path, train__sub_batch=2)  # the small CNN has batch norms
    other = trainer(tmp_path / "other")
    gradients(run)
    other.model.train()
    for part in cut(next(other.train.batches.epoch(0)), 2):
        other.train.embed(other.model, part, 0)
    buffers = dict(other.model.named_buffers())
    moved = [name for name, _ in run.model.named_buffers() if "running" in name or "num_" in name]
    assert len(moved) == 3 * 4
    for name in moved:
        torch.testing.assert_close(run.model.get_buffer(name), buffers[name], msg=name)


def test_sub_batches_make_the_batch(tmp_path):
    batch = next(trainer(tmp_path).train.batches.epoch(0))
    parts = cut(batch, 3)
    assert [len(part.image_index) for part in parts] == [3, 1]
    for name in ("pixels", "image_index", "caption_index", "lengths"):
        joined = torch.cat([getattr(part, name) for part in parts])
        assert torch.equal(joined, getattr(batch, name))
    assert parts[1].image_of_caption.unique().tolist() == [0]
    assert all(part.tokens.shape == (len(part.lengths), part.lengths.max()) for part in parts)
    assert cut(batch, 0) == cut(batch, 4) == [batch]


def test_activation_checkpointing_gives_the_same_gradients(tmp_path, monkeypatch):
    settings = both_transformers(tmp_path)
    plain, run = (trainer(tmp_path / name, **settings) for name in ("plain", "checkpointed"))
    forward, calls = AggregationBlock.forward, []
    monkeypatch.setattr(AggregationBlock, "forward", lambda *a: calls.append(1) or forward(*a))
    prepare(run.model, TrainConfig(activation_checkpointing=True))
    torch.manual_seed(1)  # BERT drops out
    expected = gradients(plain)
    once = len(calls)
    torch.manual_seed(1)
    assert_alike(expected, gradients(run))
    assert len(calls) == 3 * once  # run again in the backward pass
    backbones = run.model.text.encoder.backbone.modules()
    assert any(getattr(module, "gradient_checkpointing", False) for module in backbones)


class ClassToken(nn.Module):
    """What a ViT does first: a learned token before the others, then positions."""

    def __init__(self):
        super().__init__()
        self.token = nn.Parameter(torch.zeros(1, 1, 4))
        self.positions = nn.Parameter(torch.zeros(1, 3, 4))

    def forward(self, x):
        joined = torch.cat([self.token.expand(len(x), -1, -1), x], dim=1)
        return (joined + self.positions).sin()


@pytest.mark.parametrize("pictures", [1, 2])
def test_gradients_of_compiled_parts_have_memory_of_their_own(pictures):
    """Of one picture the two gradients are one tensor, which would take what is added twice."""
    inputs = torch.randn(2, 2, 4, generator=torch.Generator().manual_seed(0))

    def gradients_of(model, parts):
        def embed(part):
            sets = model(part)
            return SetOutput(sets, sets), SetOutput(sets.detach(), sets.detach())

        def loss(images, texts):
            return LossParts(*[images.sets.sum()] * len(LossParts._fields))

        backward(model, parts, embed, loss)
        return [p.grad for p in model.parameters()]

    compiled = ClassToken()
    compiled.compile(backend="aot_eager")
    parts = inputs[:pictures].split(1)
    found = gradients_of(compiled, parts)
    for got, expected in zip(found, gradients_of(ClassToken(), parts), strict=True):
        torch.testing.assert_close(got, expected)
    token, positions = (g.untyped_storage().data_ptr() for g in found)
    assert token != positions


@pytest.mark.filterwarnings(
    "ignore:The .grad attribute of a Tensor:UserWarning"
)  # torch's own look
def test_compiled_parts_give_the_same_gradients(tmp_path):
    settings = {"model__dropout": 0.0}
    plain, run = (trainer(tmp_path / name, **settings) for name in ("plain", "compiled"))
    names = list(run.model.state_dict())
    prepare(run.model, TrainConfig(compile="eager"))
    assert list(run.model.state_dict()) == names
    assert_alike(gradients(plain), gradients(run), slack=1e-5)
