"""Fixtures of the tests of divse-search."""

import json

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from gallery_cases import ragged, vectors
from PIL import Image
from safetensors.numpy import save_file

from divse.cli import main
from divse.search.gallery import Gallery


def json_lines(text: str) -> list[dict]:
    return [json.loads(line) for line in text.splitlines()]


@pytest.fixture
def cli(capsys, monkeypatch):
    """Run a command in this process -> (exit code, stdout, stderr)."""
    monkeypatch.setenv("COLUMNS", "120")

    def call(*arguments):
        with pytest.raises(SystemExit) as stopped:
            main([str(argument) for argument in arguments])
        captured = capsys.readouterr()
        return stopped.value.code, captured.out, captured.err

    return call


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    """Embeddings of 30 sets in every kind of file, and a gallery of them."""
    folder, values = tmp_path_factory.mktemp("cli"), vectors(30, 3, 8)
    np.save(folder / "sets.npy", values)
    np.save(folder / "queries.npy", 5 * values[[7, 2]])
    names = [f"thing {row}" for row in range(30)]
    (folder / "ids.txt").write_text("\n".join(names))
    (folder / "ids.json").write_text(json.dumps(names))
    np.save(folder / "ids.npy", np.arange(30) * 10)
    save_file({"embeddings": values, "ids": np.arange(30)}, folder / "sets.safetensors")
    rows = {"id": names, "vectors": values.tolist(), "year": range(1990, 2020)}
    pq.write_table(pa.table(rows), folder / "sets.parquet", row_group_size=11)
    packed = ragged(30, 4, 8)
    real = np.arange(4) < packed.lengths[:, None]
    np.save(folder / "packed.npy", packed.values[real])
    np.save(folder / "lengths.npy", packed.lengths)
    lists = [list(packed.values[row, :n]) for row, n in enumerate(packed.lengths)]
    lists = [[vector.tolist() for vector in row] for row in lists]
    pq.write_table(pa.table({"embeddings": lists}), folder / "ragged.parquet", row_group_size=7)
    Gallery.create(folder / "g", values, names, {"year": range(1990, 2020)})
    return folder


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    """A tiny untrained model in a folder: enough to drive pictures and texts through."""
    from divse.data.vocabulary import Vocabulary
    from divse.encoder import DivSE
    from divse.models import HeadConfig, ImageConfig, TextConfig, TwoTower, TwoTowerConfig

    torch.manual_seed(0)
    words = Vocabulary.build(["a red circle", "two blue stars"], 1, 8)
    config = TwoTowerConfig(
        ImageConfig(size=32, width=8),
        TextConfig(word_dim=8, hidden=8),
        HeadConfig(k=2, dim=16, blocks=1, heads=1, head_dim=8),
    )
    folder = tmp_path_factory.mktemp("model") / "run"
    trained = {"similarity": "smooth_chamfer", "alpha": 8.0}
    DivSE(TwoTower(config, len(words)).eval(), config, words, trained).save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def pictures(tmp_path_factory):
    folder = tmp_path_factory.mktemp("pictures")
    (folder / "more").mkdir()
    random = np.random.default_rng(0)
    for name in ("a.png", "b.jpg", "more/c.png"):
        Image.fromarray(random.integers(0, 256, (32, 32, 3), dtype=np.uint8)).save(folder / name)
    (folder / "notes.txt").write_text("no picture")
    return folder
