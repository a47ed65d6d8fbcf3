"""train.py from its command line to the folder that it leaves."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import tiny
import torch

import divse
import train
from divse import DivSE, Gallery
from divse.data import DATASETS
from divse.evaluation.retrieval import evaluate_sets

ROOT = Path(__file__).resolve().parent.parent


@pytest.fixture(autouse=True)
def other_tests_choose_their_own_kernels():
    yield
    torch.use_deterministic_algorithms(False)
    torch.utils.deterministic.fill_uninitialized_memory = True


def shell(*words):
    return subprocess.run(
        [sys.executable, "train.py", *words],
        cwd=ROOT,
        env=os.environ | {"OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=400,
    )


def test_a_run_from_the_shell(tmp_path):
    done = shell(*tiny.arguments(), "--out", str(tmp_path / "run"))
    assert done.returncode == 0, done.stderr
    assert "epoch   3" in done.stdout and "against all fitting pairs" in done.stdout
    assert "RSUM" in done.stdout and "log Var" in done.stdout
    figures = json.loads((tmp_path / "run" / "test.json").read_text())
    assert {"i2t_r1", "t2i_r10", "rsum", "log_var_images"} <= figures.keys()
    again = shell(*tiny.arguments(), "--out", str(tmp_path / "run"))
    assert again.returncode != 0 and "--resume" in again.stderr
    assert "Traceback" not in again.stderr


def test_what_a_run_leaves_behind(tmp_path, capsys):
    train.main([*tiny.arguments(), "--out", str(tmp_path)])
    capsys.readouterr()
    encoder = DivSE.from_pretrained(tmp_path)
    gallery = Gallery.open(tmp_path / "gallery")
    data = DATASETS["scenes"]("test", pictures=16)
    assert list(gallery.ids) == data.image_ids
    assert gallery.metadata["model"] == encoder.record(tmp_path)
    sets = encoder.encode_images([data.image(i) for i in range(len(data))])
    stored = torch.from_numpy(gallery.sets().numpy().values.astype("float32"))
    torch.testing.assert_close(stored, sets.values, atol=2e-3, rtol=0)  # float16 on disk
    lines = (tmp_path / "log.jsonl").read_text().splitlines()
    assert [json.loads(line)["epoch"] for line in lines] == [0, 1, 2, 3]
    # a finished run that is resumed only evaluates again
    figures = (tmp_path / "test.json").read_bytes()
    train.main(["--resume", str(tmp_path)])
    assert (tmp_path / "test.json").read_bytes() == figures
    assert "epoch" not in capsys.readouterr().out


@pytest.mark.parametrize(
    ("impl", "module"), [("native", "divse_native"), ("triton", "divse_kernels")]
)
def test_training_runs_through_the_kernels_it_claims(tmp_path, capsys, impl, module):
    kernels = pytest.importorskip(module)
    divse.calls.clear()
    if impl == "triton":
        kernels.launches.clear()
    words = tiny.arguments(
        train__impl=impl, model__dim=32, data__options=["pictures=8"], train__epochs=1
    )
    train.main([*words, "--out", str(tmp_path)])
    steps, validations = 2, 3  # with the test
    if impl == "triton":
        few = {"triton.hardest_negatives", "triton.pairs"}
        assert set(divse.calls) == {"triton.scores", *few}
        assert all(divse.calls[name] == steps for name in few)
        assert divse.calls["triton.scores"] >= validations
    else:
        assert set(divse.calls) == {"native.scores"}
        assert divse.calls["native.scores"] >= steps + validations
    assert f"scores computed by {impl}" in capsys.readouterr().out
    if impl == "triton":
        assert kernels.launches["add_pairs"] == 2 * steps  # backward, for both sides


def test_losses_of_all_pairs_hold_none_of_them_with_triton(tmp_path, capsys):
    kernels = pytest.importorskip("divse_kernels")
    divse.calls.clear()
    kernels.launches.clear()
    changes = {"loss__name": "info_nce", "train__impl": "triton", "train__epochs": 1}
    words = tiny.arguments(model__dim=32, data__options=["pictures=8"], **changes)
    train.main([*words, "--out", str(tmp_path)])
    steps = divse.calls["triton.log_sum_exps"]
    assert steps == kernels.launches["row_column_lse"] == kernels.launches["score_weights"] == 2
    assert kernels.launches["rbf_sums"] == kernels.launches["rbf_weights"] == 3 * steps


def test_native_serves_a_cpu_by_default(tmp_path, capsys):
    pytest.importorskip("divse_native")
    divse.calls.clear()
    train.main([*tiny.arguments(train__epochs=1), "--out", str(tmp_path)])
    assert set(divse.calls) == {"native.scores"}
    assert "scores computed by native" in capsys.readouterr().out


def test_the_k1_baseline_of_equal_storage(tmp_path, capsys):
    head = {"model__head": "pooling", "model__k": 1, "model__dim": 4 * 8}
    train.main([*tiny.arguments(**head, train__epochs=1), "--out", str(tmp_path)])
    sets = DivSE.from_pretrained(tmp_path).encode_texts(["a red ring"])
    assert sets.values.shape == (1, 1, 32)
    assert "log Var" not in capsys.readouterr().out
    assert "log_var_texts" not in json.loads((tmp_path / "test.json").read_text())


def test_a_learned_similarity_is_trained_judged_and_kept(tmp_path, capsys):
    words = tiny.arguments(loss__similarity="mp", optim__lr=0.1, train__epochs=1)
    train.main([*words, "--out", str(tmp_path)])
    encoder = DivSE.from_pretrained(tmp_path)
    assert encoder.similarity["similarity"] == "mp" and encoder.similarity["scale"] != 1
    data = DATASETS["scenes"]("test", pictures=16)
    images = encoder.encode_images([data.image(i) for i in range(len(data))])
    texts = encoder.encode_texts(data.captions)
    judge = {"relevance": data.relevance, **encoder.similarity}
    figures = evaluate_sets(images, texts, data.image_of_caption, **judge)
    saved = json.loads((tmp_path / "test.json").read_text())
    assert saved["rsum"] == pytest.approx(figures["rsum"], abs=1e-3)


def test_a_run_may_take_the_fastest_kernels(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr("torch.backends.cudnn.benchmark", False)
    before = torch.get_float32_matmul_precision()
    try:
        train.main(
            [*tiny.arguments(train__deterministic=False, train__epochs=0, train__out=tmp_path)]
        )
        assert torch.backends.cudnn.benchmark
        assert not torch.are_deterministic_algorithms_enabled()
    finally:
        torch.set_float32_matmul_precision(before)


def test_the_scenes_preset(tmp_path, capsys):
    words = "--preset scenes --data.options pictures=8 --train.batch_size 4 --epochs 1"
    train.main([*words.split(), "--train.device", "cpu", "--out", str(tmp_path)])
    assert "epoch   1" in capsys.readouterr().out
    assert DivSE.from_pretrained(tmp_path).config.image.encoder == "cnn"


def test_the_captions_preset_on_frozen_encoders(tmp_path, capsys):
    data = tiny.write_captions(tmp_path / "data")
    bert = tiny.write_bert(tmp_path / "bert")
    run = tmp_path / "run"
    weights = tiny.frozen_image(tmp_path)["image__weights"]
    words = (
        f"--preset captions --data {data} --out {run} --image.name test_resnet --image.size 32 "
        f"--image.level 1 --image.weights {weights} --text.path {bert} --model.dim 32 "
        "--train.batch_size 3 --epochs 2"
    )
    train.main(words.split())
    out = capsys.readouterr().out
    assert "against the source pairs" in out and "train pictures, mirrored" in out
    gallery = Gallery.open(run / "gallery")
    assert str(gallery.columns["path"][0]) == str((data / "3.png").resolve())
    before = sorted((run / "features").iterdir())
    encoder = DivSE.from_pretrained(run)
    sets = encoder.encode_images([data / "3.png"]).values[0]
    stored = torch.from_numpy(gallery.sets().numpy().values.astype("float32"))[0]
    torch.testing.assert_close(stored, sets, atol=1e-2, rtol=0)  # features went through float16
    train.main(["--resume", str(run)])
    assert "frozen encoder" not in capsys.readouterr().out  # the features are still there
    assert sorted((run / "features").iterdir()) == before


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--data.options", "colour=3"], "scenes has no option 'colour'"),
        (["--data.name", "captions", "--data.path", "p"], "unknown option of data.name pictures"),
        (["--data.path", "nowhere"], "scenes are generated"),
        (["--train.device", "cuda:99"], "cuda"),
        (["--image.encoder", "timm", "--image.name", "resnet-50"], "did you mean resnet50?"),
        (
            ["--image.encoder", "timm", "--image.name", "resnet18", "--image.weights", "w.bin"],
            "no file at w.bin",
        ),
        (["--text.encoder", "transformer", "--text.path", "nowhere"], "no config.json in nowhere"),
        (["--train.impl", "native", "--loss.similarity", "mp"], "no kernel for mp"),
        (
            ["--image.encoder", "timm", "--image.name", "resnet18.tv_in1k"]
            + ["--image.weights", "hub", "--image.size", "32"],
            "neither in the Hugging Face cache nor could it be fetched",
        ),
        (["--image.size", "20"], "needs a multiple of 8"),
        (["--text.projection", "none", "--text.hidden", "8", "--text.vectors", "x"], "no file at"),
        (["--train.sync_batchnorm", "true"], "works on CUDA devices alone"),
        (["--train.compile", "indctor"], "did you mean inductor?"),
        (["--out", __file__ + "/run"], "cannot be made: Not a directory"),
    ],
)
def test_missing_things_end_with_a_sentence(tmp_path, words, message):
    with pytest.raises(SystemExit, match=message):
        train.main([*tiny.arguments(), "--out", str(tmp_path / "run"), *words])
    assert not (tmp_path / "run").exists()
