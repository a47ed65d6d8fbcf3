"""train.py runs on every layout, and reads what divse-data encode wrote."""

import json
import shlex

import layouts
import numpy as np
import pytest
import tiny
from layouts import LAYOUTS

import train
from divse.cli.data_app import main
from divse.data import DATASETS


def settings_of(folder, layout, **changes):
    """A tiny run on a layout: one step of one epoch."""
    name = LAYOUTS[layout][0]
    settings = {
        "data__name": name,
        "data__path": folder,
        "image__size": 32,
        "train__epochs": 1,
        "train__batch_size": 6,
        "train__out": folder.parent / "run",
    }
    if DATASETS[name]("train", path=folder).read_features is not None:
        settings |= {"image__encoder": "regions", "data__region_drop": 0.2}
        settings |= {"data__word_drop": 0.2, "image__pool": "max", "image__projection": "local"}
    words = tiny.arguments(**settings | changes)
    place = words.index("--data.options")  # the tiny run's are those of scenes
    return words[:place] + words[place + 2 :]


@pytest.mark.parametrize("layout", LAYOUTS)
def test_a_run_from_data_to_gallery(tmp_path, layout):
    _, folder = layouts.write(layout, tmp_path / "data")
    gallery = DATASETS[LAYOUTS[layout][0]]("test", path=folder).read_image is not None
    words = settings_of(folder, layout, train__gallery=gallery)
    train.main(words)
    figures = json.loads((tmp_path / "run" / "test.json").read_text())
    assert np.isfinite([v for v in figures.values() if isinstance(v, float)]).all()
    assert (tmp_path / "run" / "model.safetensors").is_file()


@pytest.fixture
def encode(capsys):
    """Run `divse-data encode` in this process -> (exit code, stdout, stderr)."""

    def call(*arguments):
        with pytest.raises(SystemExit) as stopped:
            main(["encode", *map(str, arguments)])
        captured = capsys.readouterr()
        return stopped.value.code, captured.out, captured.err

    return call


def test_training_reads_what_was_encoded(tmp_path, encode, capsys):
    _, folder = layouts.write("karpathy_flickr30k", tmp_path / "data")
    frozen = tiny.frozen_image(tmp_path / "backbone")
    words = settings_of(folder, "karpathy_flickr30k", **frozen)
    code, out, err = encode(folder, *words)
    assert code == 0, err
    assert "frozen encoder: train pictures" in out and "--data.cache" in out
    files = sorted((folder / "features").glob("*-images-*.npy"))
    stores = [file for file in files if ".offsets" not in file.name]
    assert [store.name.split("-")[0] for store in stores] == ["test", "train", "val"]
    assert np.load(stores[1], mmap_mode="r").dtype == np.float16
    code, again, _ = encode(folder, *words)
    assert code == 0 and "frozen encoder" not in again
    command = shlex.split(out.splitlines()[-1])
    assert command[:2] == ["python", "train.py"]
    train.main(command[2:])
    assert "frozen encoder" not in capsys.readouterr().out


def test_encoding_needs_a_frozen_encoder(tmp_path, encode):
    _, folder = layouts.write("karpathy_flickr30k", tmp_path / "data")
    words = settings_of(folder, "karpathy_flickr30k")
    code, _, err = encode(folder, *words)
    assert code == 1 and "no encoder is frozen" in err
