"""captions: every kind of table, every kind of picture, and errors that name row and file."""

import csv
import json
import warnings

import numpy as np
import pytest
from PIL import Image

from divse.data import DATASETS
from divse.data.captions import load
from divse.data.pictures import as_rgb, fit, read_picture, resize
from divse.data.table import find_table

ROWS = [
    {"image": "images/a.png", "captions": ["a cat", "an animal"], "split": "train"},
    {"image": "images/b.png", "captions": ["a dog"], "split": "validation"},
    {"image": "images/c.png", "captions": ["a cow", "cattle", "an animal"], "split": "train"},
]


@pytest.fixture
def folder(tmp_path):
    (tmp_path / "images").mkdir()
    for i, name in enumerate("abc"):
        Image.new("RGB", (6 + i, 4), (i, 10 * i, 100)).save(tmp_path / "images" / f"{name}.png")
    return tmp_path


def write_jsonl(folder, rows, name="captions.jsonl"):
    (folder / name).write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return folder / name


def write_csv(folder, header, rows, name="captions.csv"):
    with (folder / name).open("w", newline="", encoding="utf-8") as file:
        delimiter = "\t" if name.endswith(".tsv") else ","
        csv.writer(file, delimiter=delimiter).writerows([header, *rows])
    return folder / name


def assert_is_the_example(data):
    assert len(data) == 2 and data.split == "train"
    assert data.captions == ["a cat", "an animal", "a cow", "cattle", "an animal"]
    assert data.image_of_caption.tolist() == [0, 0, 1, 1, 1]
    assert data.captions_of(1) == ["a cow", "cattle", "an animal"]
    assert data.image(1).shape == (4, 8, 3) and (data.image(1) == [2, 20, 100]).all()
    assert data.relevance is None


def test_jsonl_in_a_folder_and_by_its_own_path(folder):
    table = write_jsonl(folder, ROWS)
    assert_is_the_example(load("train", path=folder))
    assert_is_the_example(load("train", path=str(table)))
    assert load("val", path=folder).captions == ["a dog"]
    assert DATASETS["captions"]("train", path=folder).image_ids == ["images/a.png", "images/c.png"]


def test_a_byte_order_mark_and_blank_lines_do_no_harm(folder):
    text = "\n\n".join(json.dumps(row) for row in ROWS)
    (folder / "captions.jsonl").write_text(text, encoding="utf-8-sig")
    assert_is_the_example(load("train", path=folder))


@pytest.mark.parametrize("name", ["captions.csv", "metadata.tsv"])
def test_csv_with_a_row_for_each_caption(folder, name):
    # The rows of one picture need not stand together.
    rows = [
        ["a.png", "a cat", "train"],
        ["c.png", "a cow", "train"],
        ["a.png", "an animal", "train"],
        ["c.png", "cattle", "train"],
        ["b.png", "a dog", "val"],
        ["c.png", "an animal", "train"],
    ]
    write_csv(folder, ["File_Name", "Text", "Split"], rows, name)
    assert_is_the_example(load("train", path=folder, images=folder / "images"))


def test_csv_with_numbered_columns_or_json_lists(folder):
    rows = [["images/a.png", "a cat", "an animal", ""], ["images/c.png", "a cow", "cattle", "moo"]]
    write_csv(folder, ["picture", "caption_1", "caption_2", "caption_3"], rows)
    with pytest.warns(UserWarning, match="no split column"):
        data = [load(s, path=folder) for s in splits_present(folder)]
    assert sorted(len(d.captions_of(i)) for d in data for i in range(len(d))) == [2, 3]
    rows = [[r["image"], json.dumps(r["captions"]), r["split"]] for r in ROWS]
    write_csv(folder, ["image", "captions", "split"], rows)
    assert_is_the_example(load("train", path=folder))


def splits_present(folder):
    present = []
    for split in ("train", "val", "test"):
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            try:
                load(split, path=folder)
            except ValueError:
                continue
        present.append(split)
    return present


def test_parquet_with_lists_and_with_plain_text(folder):
    pyarrow = pytest.importorskip("pyarrow")
    parquet = pytest.importorskip("pyarrow.parquet")
    table = {key: [row[key] for row in ROWS] for key in ROWS[0]}
    parquet.write_table(pyarrow.table(table), folder / "captions.parquet")
    assert_is_the_example(load("train", path=folder))
    flat = [(r["image"], c, r["split"]) for r in ROWS for c in r["captions"]]
    columns = dict(zip(("filename", "sentence", "subset"), zip(*flat, strict=True), strict=True))
    parquet.write_table(pyarrow.table(columns), folder / "captions.parquet")
    assert_is_the_example(load("train", path=folder))


def test_unusual_columns_can_be_named(folder):
    rows = [{"src": r["image"], "alt": r["captions"], "part": r["split"], "k": i}
            for i, r in enumerate(ROWS)]  # fmt: skip
    write_jsonl(folder, rows)
    names = {"image_column": "src", "caption_column": "alt", "split_column": "part"}
    data = load("train", path=folder, **names, id_column="k")
    assert_is_the_example(data)
    assert data.image_ids == ["0", "2"]
    with pytest.raises(ValueError, match=r"captions.jsonl, line 1: no column of image .* src, alt"):
        load("train", path=folder)
    with pytest.raises(ValueError, match="no column 'url', the columns are src"):
        load("train", path=folder, image_column="url")


def test_without_a_split_column_a_hash_decides_for_good(folder):
    write_jsonl(folder, [{"id": f"p{i}", "image": "images/a.png", "text": "x"} for i in range(500)])
    with pytest.warns(UserWarning, match="split 80 : 10 : 10 by a hash"):
        sizes = {split: len(load(split, path=folder)) for split in ("train", "val", "test")}
        first = load("test", path=folder).image_ids[:4]
    assert sum(sizes.values()) == 500
    assert 370 < sizes["train"] < 430 and min(sizes.values()) > 30
    assert first == ["p3", "p30", "p48", "p59"]  # the same on every machine


def test_other_names_of_the_splits(folder):
    rows = [
        {**row, "split": name} for row, name in zip(ROWS, ["restval", "dev", "TEST"], strict=True)
    ]
    write_jsonl(folder, rows)
    assert [load(s, path=folder).captions[0] for s in ("train", "val", "test")] == [
        "a cat", "a dog", "a cow",
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ({"image": "images/a.png", "captions": [], "split": "val"}, "line 2: no caption"),
        ({"image": "images/a.png", "captions": [" "], "split": "val"}, "line 2: no caption"),
        ({"image": 7, "captions": ["x"], "split": "val"}, "line 2: 'image' must be the path .* 7"),
        (
            {"image": "images/a.png", "captions": '["x', "split": "val"},
            "line 2: a list .* not JSON",
        ),
        ({"image": "images/a.png", "captions": [3], "split": "val"}, "line 2: a caption must be"),
        ({"image": "images/a.png", "captions": ["x"], "split": "vall"}, "line 2: split must be"),
        ({"image": "images/a.png", "captions": ["x"]}, "line 2: split must be one of .* None"),
        (
            {"image": "images/b.png", "captions": ["x"], "split": "test"},
            "line 2: picture .* line 1",
        ),
    ],
)
def test_bad_rows_are_named(folder, row, message):
    write_jsonl(folder, [ROWS[1], row])
    with pytest.raises(ValueError, match=f"captions.jsonl, {message}"):
        load("val", path=folder)


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("captions.jsonl", '{"image": "a.png"', "captions.jsonl, line 1: not JSON"),
        ("captions.jsonl", "[1]", "line 1: expected a JSON object, got list"),
        ("captions.csv", "image,text,split\na.png,red, green,val\n", "line 2: more cells than"),
        (
            "captions.csv",
            'image,text,split\na.png,"red,val\n',
            "captions.csv, after line 1: unexpected",
        ),
        ("captions.csv", "image,text,split\n", "no pictures in split 'val' .it has no rows"),
    ],
)
def test_bad_tables_are_named(folder, name, text, message):
    (folder / name).write_text(text, encoding="utf-8")
    with pytest.raises(ValueError, match=message):
        load("val", path=folder)


def test_an_absent_split_says_which_are_there(folder):
    write_jsonl(folder, ROWS)
    with pytest.raises(ValueError, match=r"no pictures in split 'test' \(it has train: 2, val: 1"):
        load("test", path=folder)


def test_missing_pictures_are_counted_and_named(folder):
    rows = [{"image": f"images/{i}.png", "caption": "x", "split": "test"} for i in range(7)]
    write_jsonl(folder, [*rows, {"image": "images/a.png", "caption": "x", "split": "test"}])
    with pytest.raises(
        FileNotFoundError, match=r"7 of 8 .*0.png \(captions.jsonl, line 1\).*2 more"
    ):
        load("test", path=folder)


def test_tables_that_are_not_there(tmp_path):
    with pytest.raises(ValueError, match="need the path"):
        load("test")
    with pytest.raises(FileNotFoundError, match="no file or folder at"):
        load("test", path=tmp_path / "nowhere")
    with pytest.raises(FileNotFoundError, match="it holds no such file"):
        find_table(tmp_path)
    for name in ("one.csv", "two.csv"):
        (tmp_path / name).write_text("image\n", encoding="utf-8")
    with pytest.raises(FileNotFoundError, match="it holds one.csv, two.csv"):
        find_table(tmp_path)
    (tmp_path / "notes.txt").write_text("", encoding="utf-8")
    with pytest.raises(ValueError, match=r"read from .jsonl, .* got 'notes.txt'"):
        find_table(tmp_path / "notes.txt")
    (tmp_path / "two.csv").unlink()
    assert find_table(tmp_path).name == "one.csv"


def test_transparency_is_put_on_white(tmp_path):
    rgba = np.zeros((2, 2, 4), dtype=np.uint8)
    rgba[0, 0] = [255, 0, 0, 255]
    rgba[0, 1] = [0, 0, 0, 51]
    Image.fromarray(rgba).save(tmp_path / "p.png")
    read = read_picture(tmp_path / "p.png")
    assert read[0].tolist() == [[255, 0, 0], [204, 204, 204]] and (read[1] == 255).all()


@pytest.mark.parametrize("mode", ["1", "L", "LA", "P", "PA", "RGB", "RGBA", "CMYK", "I;16"])
def test_every_mode_becomes_rgb(mode):
    picture = Image.new(mode, (5, 3)) if mode != "PA" else Image.new("LA", (5, 3)).convert("PA")
    array = as_rgb(picture)
    assert array.shape == (3, 5, 3) and array.dtype == np.uint8


def test_sixteen_bits_are_scaled_and_rotation_is_undone(tmp_path):
    deep = Image.fromarray(np.full((2, 2), 128 * 256, dtype=np.uint16))
    assert (as_rgb(deep) == 128).all()
    turned = Image.new("RGB", (6, 2))
    exif = turned.getexif()
    exif[0x0112] = 6  # orientation: turn by a quarter
    turned.save(tmp_path / "t.jpg", exif=exif)
    assert read_picture(tmp_path / "t.jpg").shape == (6, 2, 3)


def test_a_broken_picture_is_named(tmp_path):
    (tmp_path / "broken.png").write_bytes(b"\x89PNG\r\n\x1a\nnothing more")
    with pytest.raises(ValueError, match=r"cannot read the picture .*broken.png"):
        read_picture(tmp_path / "broken.png")


def test_resizing_keeps_the_whole_picture():
    picture = np.zeros((10, 30, 3), dtype=np.uint8)
    picture[:, 15:] = 200
    small = resize(picture, 8)
    assert small.shape == (8, 8, 3) and (small[:, :3] < 20).all() and (small[:, 5:] > 180).all()
    assert resize(small, 8) is small


@pytest.mark.parametrize("shape", [(30, 50), (50, 30), (37, 37), (16, 16), (7, 90)])
@pytest.mark.parametrize("crop_pct", [0.875, 1.0, 0.6])
def test_centre_crops_are_those_of_torchvision(shape, crop_pct):
    """Resize(size / crop_pct), CenterCrop(size)."""
    transforms = pytest.importorskip("torchvision.transforms")
    picture = np.random.default_rng(0).integers(0, 256, (*shape, 3), dtype=np.uint8)
    bicubic = transforms.InterpolationMode.BICUBIC
    steps = transforms.Resize(int(16 / crop_pct), bicubic), transforms.CenterCrop(16)
    expected = np.asarray(transforms.Compose(steps)(Image.fromarray(picture)))
    got = fit(picture, 16, crop_pct)
    assert got.shape == (16, 16, 3)
    assert (got == expected).all()
    assert (fit(picture, 16) == resize(picture, 16)).all()


def test_a_line_of_pixels_is_not_blown_up():
    picture = np.full((1, 100_000, 3), 7, dtype=np.uint8)
    assert (fit(picture, 224, 0.875) == 7).all()  # 256 x 25,600,000 pixels would not fit
