"""Six defects of the paper's published code, each with a test that divse does not have it."""

import math
from pathlib import Path

import numpy as np
import pytest
import torch
import training_cases

import divse
from divse import DivSE, EmbeddingSets
from divse.evaluation.retrieval import evaluate_sets
from divse.models.slot_attention import competing_weights, length_mask
from divse.training import loop


@pytest.fixture(autouse=True)
def other_tests_choose_their_own_kernels():
    yield
    torch.use_deterministic_algorithms(False)
    torch.utils.deterministic.fill_uninitialized_memory = True


def masked_before_the_slots(logits, mask):
    """What the published code computes: a very low logit, then the softmax over slots."""
    low = torch.finfo(logits.dtype).min
    weights = logits.masked_fill(~mask[:, None, None, :], low).softmax(dim=2)
    return weights / (weights.sum(dim=3, keepdim=True) + 1e-7)


def test_1_no_slot_mass_falls_on_padding():
    """Five words and three of padding: masked before the slot softmax, padding takes a share."""
    torch.manual_seed(0)
    logits, mask = torch.randn(2, 4, 4, 8), length_mask(torch.tensor([5, 5]), 8)
    padding = ~mask[:, None, None, :].expand_as(logits)
    published = masked_before_the_slots(logits, mask)
    assert published[padding].sum() / published.sum() > 0.3
    ours = competing_weights(logits, mask)
    assert (ours[padding] == 0).all()
    torch.testing.assert_close(ours[..., :5], competing_weights(logits[..., :5], None))


def test_1_a_caption_does_not_depend_on_its_batch(tmp_path):
    run = training_cases.trainer(tmp_path)
    model, batches = run.model.eval(), run.val.batches
    tokens, lengths = batches.tokens[:4], batches.lengths[:4]
    wider = torch.nn.functional.pad(tokens, (0, 9))
    with torch.no_grad():
        torch.testing.assert_close(
            model.texts(wider, lengths).sets, model.texts(tokens, lengths).sets
        )


def test_2_the_best_weights_are_evaluated_not_the_last(tmp_path, monkeypatch):
    rsums, at_best = iter([1.0, 5.0, 3.0, 2.0]), []
    figures = {f"{way}_r{k}": 0.0 for way in ("i2t", "t2i") for k in (1, 5, 10)}
    monkeypatch.setattr(loop, "evaluate", lambda *_: {**figures, "rsum": next(rsums)})
    run = training_cases.trainer(tmp_path)
    keep = run.keep

    def remember():
        at_best[:] = [{n: t.clone() for n, t in run.model.state_dict().items()}]
        keep()

    run.keep = remember
    run.fit()
    kept = DivSE.from_pretrained(tmp_path).model.state_dict()  # what train.py evaluates on test
    assert run.progress.best == 5.0
    assert all(torch.equal(kept[name], tensor) for name, tensor in at_best[0].items())
    assert any(not torch.equal(kept[name], t) for name, t in run.model.state_dict().items())


def test_3_validation_reads_every_picture():
    """1,030 pictures, of which only those beyond the first thousand are mistaken."""
    torch.manual_seed(0)
    values = torch.nn.functional.normalize(torch.randn(1030, 2, 16), dim=2)
    texts = values.clone()
    texts[1000:] = texts[1000:].flip(0)
    owners = np.arange(1030)
    figures = evaluate_sets(EmbeddingSets(values), EmbeddingSets(texts), owners)
    assert figures["i2t_r1"] == pytest.approx(100 * 1000 / 1030)
    assert figures["t2i_r1"] == pytest.approx(100 * 1000 / 1030)


def test_3_a_split_is_encoded_whole(tmp_path):
    run = training_cases.trainer(tmp_path)
    images, texts = run.val.encode(run.model)
    assert len(images) == len(run.val.data) and len(texts) == len(run.val.data.captions)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("alpha", [16, 40, 1000])
def test_4_half_precision_is_finite_and_right(dtype, alpha):
    """exp(16) overflows float16: the exponent is taken in fp32, and shifted where it must be."""
    assert torch.exp(torch.tensor(16.0, dtype=torch.float16)).isinf()
    torch.manual_seed(0)
    sets = torch.nn.functional.normalize(torch.randn(3, 4, 8), dim=2).to(dtype)
    got = divse.score(sets, sets, alpha=alpha, unit_norm=False, impl="reference")
    cosines = torch.einsum("ikd,jld->ijkl", sets.double(), sets.double())
    rows = (alpha * cosines).logsumexp(dim=3).mean(dim=2)
    columns = (alpha * cosines).logsumexp(dim=2).mean(dim=2)
    expected = (rows + columns) / (2 * alpha)
    torch.testing.assert_close(got.double(), expected, atol=1e-6, rtol=0)


def test_4_training_in_half_precision_scores_in_single(tmp_path):
    run = training_cases.trainer(tmp_path, train__precision="bf16", train__epochs=1)
    batch = next(run.train.batches.epoch(0))
    with torch.autocast("cpu", torch.bfloat16):
        images, texts = run.train.embed(run.model, batch)
    assert images.sets.dtype == texts.sets.dtype == torch.float32
    run.fit()
    assert math.isfinite(run.progress.best)


def test_5_pictures_are_encoded_once(tmp_path):
    run = training_cases.trainer(tmp_path)
    encoder, seen = run.model.image.encoder, []
    local = encoder.local
    encoder.local = lambda pixels: seen.append(len(pixels)) or local(pixels)
    run.val.encode(run.model)
    assert sum(seen) == len(run.val.data) < len(run.val.data.captions)


def test_6_no_device_is_hard_coded(tmp_path, monkeypatch):
    def refuse(*_, **__):
        raise AssertionError("CUDA was asked for")

    monkeypatch.setattr(torch.Tensor, "cuda", refuse)
    monkeypatch.setattr(torch.nn.Module, "cuda", refuse)
    run = training_cases.trainer(tmp_path, train__epochs=1)
    run.fit()
    assert run.progress.epoch == 1
    for path in sorted(Path(divse.__file__).parent.rglob("*.py")):
        assert ".cuda()" not in path.read_text(), path


def test_6_the_parameters_of_mp_are_trained_and_saved(tmp_path):
    run = training_cases.trainer(tmp_path, loss__similarity="mp", train__epochs=1)
    learned = run.model.similarity_parameters()
    assert set(learned) == {"scale", "shift"}
    start = {name: float(value.detach()) for name, value in learned.items()}
    trained = {id(p) for group in run.update.optimizer.param_groups for p in group["params"]}
    assert {id(value) for value in learned.values()} <= trained
    run.run_epoch()
    run.keep()
    saved = DivSE.from_pretrained(tmp_path).similarity
    assert all(saved[name] != start[name] for name in ("scale", "shift"))
