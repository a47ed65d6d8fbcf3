"""divse-data check: what is there, what is missing, what can be run, and the exit code."""

import json
import shlex

import layouts
import pytest
from layouts import LAYOUTS, PICTURES

from divse.cli.data_app import main
from divse.data import DATASETS
from divse.data.layout import LAYOUTS as KNOWN
from divse.training.command_line import parse


@pytest.fixture
def check(capsys, monkeypatch):
    """Run `divse-data check` in this process -> (exit code, stdout, stderr)."""
    monkeypatch.setenv("COLUMNS", "300")

    def call(*arguments):
        with pytest.raises(SystemExit) as stopped:
            main(["check", *map(str, arguments)])
        captured = capsys.readouterr()
        return stopped.value.code, captured.out, captured.err

    return call


def best(text):
    found = json.loads(text)
    return found["usable"], found["layouts"][0]


@pytest.mark.parametrize("layout", [*LAYOUTS, "own"])
def test_a_layout_is_found_counted_and_can_be_run(tmp_path, check, layout):
    if layout == "own":
        name, sizes = "captions", {"train": 7, "val": 3, "test": 3}
        layouts.own_files(tmp_path)
    else:
        name, sizes = layouts.write(layout, tmp_path)[0], PICTURES
    code, out, _ = check(tmp_path, "--json")
    usable, report = best(out)
    assert (code, usable, report["layout"]) == (0, True, name)
    assert {split: found["pictures"] for split, found in report["splits"].items()} == sizes
    assert report["commands"]
    for command in report["commands"]:
        line, _, need = command.partition("  # ")
        words = shlex.split(line)
        assert words[:3] == ["python", "train.py", "--preset"]
        if not need:
            config, _ = parse(words[2:])
            assert config.data.name == name and config.data.path == str(tmp_path)


def test_people_read_a_table(tmp_path, check):
    layouts.write("karpathy_flickr30k", tmp_path)
    code, out, _ = check(tmp_path)
    assert code == 0
    assert out.startswith("karpathy Karpathy splits and pictures, in ")
    assert "train  6 pictures  30 captions  40 x 32 pixels" in out
    assert "--preset f30k" in out and "--preset coco" not in out


def test_missing_files_are_counted_and_the_first_named(tmp_path, check):
    _, folder = layouts.write("karpathy_coco", tmp_path)
    gone = sorted((folder / "train2014").iterdir())
    for path in gone[1:]:
        path.unlink()
    (folder / "val2014" / "COCO_val2014_000000001005.jpg").unlink()
    (folder / "val2014" / "COCO_val2014_000000001006.jpg").unlink()
    code, out, _ = check(tmp_path)
    assert code == 1 and "train.py" not in out
    assert "train: missing 5 of 6 files" in out and str(gone[1]) in out
    assert "val: missing 1 of 3 files" in out and "test  4 pictures" in out
    code, out, _ = check(tmp_path, "--json")
    usable, report = best(out)
    assert code == 1 and not usable and not report["commands"]
    assert len(report["splits"]["train"]["missing"]) == 5
    assert report["splits"]["val"]["missing"] == [
        str(folder / "val2014" / "COCO_val2014_000000001006.jpg")
    ]


def test_more_missing_files_than_are_shown_are_counted(tmp_path, check):
    _, folder = layouts.write("karpathy_flickr30k", tmp_path)
    for path in (folder / "flickr30k-images").iterdir():
        path.unlink()
    _, out, _ = check(tmp_path)
    assert "train: missing 6 of 6 files" in out and "and 1 more" in out


def test_several_layouts_in_a_folder_are_all_told(tmp_path, check):
    layouts.write("regions", tmp_path)
    layouts.write("karpathy_coco", tmp_path)
    (tmp_path / "train2014" / "COCO_train2014_000000001000.jpg").unlink()
    code, out, _ = check(tmp_path)
    assert code == 0
    assert out.index("36 x 2048 features") < out.index("not usable: 1 of 6 pictures")
    code, out, _ = check(tmp_path, "--layout", "karpathy", "--json")
    assert code == 1 and [r["layout"] for r in json.loads(out)["layouts"]] == ["karpathy"]


def test_options_reach_the_data_and_the_command_line(tmp_path, check):
    _, folder = layouts.write("karpathy_flickr30k", tmp_path / "a")
    pictures = tmp_path / "elsewhere"
    (folder / "flickr30k-images").rename(pictures)
    assert check(folder)[0] == 1
    code, out, _ = check(folder, "--option", f"images={pictures}", "--json")
    assert code == 0
    assert f"--data.options images={pictures}" in best(out)[1]["commands"][0]


def test_a_picture_that_cannot_be_read_makes_data_unusable(tmp_path, check):
    _, folder = layouts.write("karpathy_flickr30k", tmp_path)
    (folder / "flickr30k-images" / "1000092795.jpg").write_bytes(b"")
    code, out, _ = check(tmp_path)
    assert code == 1 and "cannot read the picture" in out


def test_data_without_a_split_is_noticed(tmp_path, check):
    layouts.write_picture(tmp_path / "0.jpg", 0)
    lines = "".join(f'{{"image": "0.jpg", "id": "{i}", "caption": "a"}}\n' for i in range(60))
    (tmp_path / "captions.jsonl").write_text(lines)
    code, out, _ = check(tmp_path)
    assert code == 0 and "note: captions.jsonl has no split column" in out


def test_a_picture_in_two_splits_is_noticed(tmp_path, check):
    for name in ("0.jpg", "1.jpg"):
        layouts.write_picture(tmp_path / name, 0)
    rows = [("0.jpg", "train"), ("0.jpg", "val"), ("1.jpg", "test"), ("0.jpg", "test")]
    lines = [
        json.dumps({"id": str(i), "image": image, "caption": "a", "split": split})
        for i, (image, split) in enumerate(rows)
    ]
    (tmp_path / "captions.jsonl").write_text("\n".join(lines[:3]))
    code, out, _ = check(tmp_path)
    assert code == 0 and "note: train and val share picture files (1), e.g." in out
    assert "and test" not in out
    (tmp_path / "captions.jsonl").write_text("\n".join(lines))
    notes = best(check(tmp_path, "--json")[1])[1]["notes"]
    assert [note.split(" share")[0] for note in notes] == [
        "train and val",
        "train and test",
        "val and test",
    ]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["nowhere"], "no file or folder at nowhere"),
        (["."], "holds none of the known layouts"),
        ([".", "--layout", "karpaty"], "did you mean karpathy?"),
        ([".", "--option", "images"], "expected NAME=VALUE"),
    ],
)
def test_wrong_requests_end_with_a_sentence(tmp_path, monkeypatch, check, arguments, message):
    monkeypatch.chdir(tmp_path)
    code, out, err = check(*arguments)
    assert code == 1 and not out
    assert err.startswith("divse-data: error: ") and message in err and err.count("\n") == 1


def test_weights_that_were_never_fetched_stand_behind_the_command(tmp_path, check, monkeypatch):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "cache"))
    layouts.write("karpathy_coco", tmp_path / "data")
    code, out, _ = check(tmp_path / "data")
    lines = [line for line in out.splitlines() if "resnet152" in line]
    assert code == 0 and len(lines) == 1
    assert "# image.weights: resnet152.tv_in1k is neither in the Hugging Face cache" in lines[0]


def test_every_layout_is_a_data_set():
    assert {layout.name for layout in KNOWN} == set(DATASETS) - {"scenes"}
