"""Arrow, Parquet and tar shards: columns, splits, the index, and what cannot be read."""

import gzip
import json
import os
import tarfile
from pathlib import Path

import layouts
import pyarrow as pa
import pytest
from pyarrow import parquet

from divse.data import DATASETS, webdataset
from divse.data.layout import find_layouts
from divse.data.shards import split_in_path

hub, web = DATASETS["huggingface"], DATASETS["webdataset"]


def rows(**columns):
    picture = {"bytes": layouts.jpeg(0), "path": None}
    count = len(next(iter(columns.values())))
    return pa.Table.from_pydict({"image": [picture] * count, **columns})


def test_a_split_column_wins_over_the_name_of_the_file(tmp_path):
    table = rows(caption=["a", "b", "c"], split=["train", "val", "train"])
    parquet.write_table(table, tmp_path / "test-00000-of-00001.parquet")
    assert hub("train", path=tmp_path).captions == ["a", "c"]
    assert hub("val", path=tmp_path).captions == ["b"]
    with pytest.raises(ValueError, match="no rows of split 'test'"):
        hub("test", path=tmp_path)


def test_rows_of_one_id_are_one_picture(tmp_path):
    parquet.write_table(
        rows(caption=["a", "b", "c"], image_id=[7, 8, 7]), tmp_path / "train.parquet"
    )
    data = hub("train", path=tmp_path)
    assert data.image_ids == ["7", "8"] and data.captions == ["a", "c", "b"]


def test_numbered_columns_and_sentences_are_captions(tmp_path):
    parquet.write_table(rows(caption_0=["a"], caption_1=["b"]), tmp_path / "train.parquet")
    assert hub("train", path=tmp_path).captions == ["a", "b"]
    sentences = [[{"raw": "x", "imgid": 1}, {"raw": "y", "imgid": 1}]]
    parquet.write_table(rows(sentences=sentences), tmp_path / "train.parquet")
    assert hub("train", path=tmp_path).captions == ["x", "y"]
    parquet.write_table(rows(about=["z"]), tmp_path / "train.parquet")
    assert hub("train", path=tmp_path, caption_column="about").captions == ["z"]
    with pytest.raises(ValueError, match="no column of captions"):
        hub("train", path=tmp_path)


def test_pictures_may_be_files_that_cells_name(tmp_path):
    layouts.write_picture(tmp_path / "pictures" / "0.jpg", 0)
    cell = {"bytes": None, "path": "pictures/0.jpg"}
    table = pa.Table.from_pydict({"image": pa.array([cell], pa.struct(
        [("bytes", pa.binary()), ("path", pa.string())])), "text": ["a"]})  # fmt: skip
    with pa.ipc.new_file(str(tmp_path / "train.arrow"), table.schema) as writer:
        writer.write_table(table)
    assert hub("train", path=tmp_path).image(0).shape == (32, 40, 3)


@pytest.mark.parametrize("name", ["train.arrow", "train.parquet"])
def test_broken_files_are_named(tmp_path, name):
    (tmp_path / name).write_bytes(b"neither of the two")
    with pytest.raises(ValueError, match=f"{name} cannot be read"):
        hub("train", path=tmp_path)
    assert [layout.name for layout in find_layouts(tmp_path)] == ["huggingface"]


def test_what_the_datasets_library_writes_is_read(tmp_path):
    library = pytest.importorskip("datasets")
    library.disable_progress_bars()
    table = layouts.picture_table("train")
    saved = library.Dataset(table).cast_column("image", library.Image())
    library.DatasetDict({"train": saved}).save_to_disk(tmp_path / "saved")
    data = hub("train", path=tmp_path / "saved")
    assert data.captions_of(1) == layouts.captions_of(1) and data.image(1).shape == (32, 40, 3)


@pytest.mark.parametrize(
    ("path", "split"),
    [
        ("data/train-00000-of-00001.parquet", "train"),
        ("flickr/validation/0001.tar", "val"),
        ("coco_train2014_val.tar", "val"),
        ("training.arrow", "train"),
        ("latest/contest.tar", None),
    ],
)
def test_names_of_shards_tell_the_split(path, split):
    assert split_in_path(Path(path)) == split


def tar_of(path, *members):
    with tarfile.open(path, "w") as tar:
        for name, content in members:
            layouts.add_member(tar, name, content)


def test_the_index_is_written_once_and_again_if_a_shard_changes(tmp_path, monkeypatch):
    scans, scan = [], webdataset.scan
    monkeypatch.setattr(webdataset, "scan", lambda *a: scans.append(a[1]) or scan(*a))
    _, folder = layouts.write("webdataset", tmp_path)
    web("train", path=folder), web("val", path=folder)
    assert len(scans) == 6
    tar_of(folder / "flickr-train-000000.tar", ("x.jpg", layouts.jpeg(1)), ("x.txt", b"one"))
    assert len(web("train", path=folder)) == 5 and len(scans) == 7
    assert len(web("train", path=folder / "flickr-train-000001.tar")) == 4 and len(scans) == 7
    for broken in (json.dumps({"version": 0}), "{"):
        (folder / webdataset.INDEX).write_text(broken)
        scans.clear()
        assert len(web("train", path=folder)) == 5 and len(scans) == 6


def test_members_in_folders_several_dots_and_splits_in_json(tmp_path):
    described = json.dumps({"caption": "told", "split": "val"}).encode()
    tar_of(
        tmp_path / "00000.tar",
        ("a/1.seg.png", b"not the picture"),
        ("a/1.JPG", layouts.jpeg(1)),
        ("a/1.json", described),
        ("b/1.png", layouts.jpeg(2)),
        ("b/1.json", described),
        ("c/1.png", layouts.jpeg(3)),
    )
    data = web("val", path=tmp_path)
    assert data.image_ids == ["00000/a/1", "00000/b/1"] and data.captions == ["told", "told"]
    assert abs(data.image(1).astype(int) - layouts.pixels_of(2)).mean() < 20


def test_shards_without_a_split_are_drawn_by_a_hash(tmp_path):
    members = [(f"{i}{end}", content) for i in range(60)
               for end, content in ((".jpg", layouts.jpeg(i)), (".txt", b"a"))]  # fmt: skip
    tar_of(tmp_path / "00000.tar", *members)
    sizes = [len(web(split, path=tmp_path)) for split in ("train", "val", "test")]
    assert sum(sizes) == 60 and sizes[0] > 40 and min(sizes) > 0


def test_shards_that_cannot_be_read_are_named(tmp_path):
    _, folder = layouts.write("webdataset", tmp_path / "a")
    file = folder / "flickr-val-000000.tar"
    file.write_bytes(file.read_bytes()[:1000])
    with pytest.raises(ValueError, match=r"flickr-val-000000.tar (is cut short|cannot be read)"):
        web("val", path=folder)
    (tmp_path / "b").mkdir()
    with pytest.raises(FileNotFoundError, match="no .tar shards"):
        web("val", path=tmp_path / "b")
    (tmp_path / "b" / "train.tar.gz").write_bytes(gzip.compress(b""))
    with pytest.raises(ValueError, match=r"train.tar.gz is compressed: unpack it"):
        web("val", path=tmp_path / "b")
    tar_of(tmp_path / "b" / "train.tar", ("1.jpg", b"x"), ("1.json", b"{"))
    (tmp_path / "b" / "train.tar.gz").unlink()
    with pytest.raises(ValueError, match=r"train.tar: 1.json cannot be read"):
        web("train", path=tmp_path / "b")


@pytest.mark.parametrize("at", ["member", "header", "data", "end"])
def test_shards_that_were_cut_short_are_refused(tmp_path, at):
    """tarfile itself says nothing where a file stops before or in a member's header."""
    _, folder = layouts.write("webdataset", tmp_path)
    file = folder / "flickr-val-000000.tar"
    with tarfile.open(file) as tar:
        last = tar.getmembers()[-1]
    end = last.offset_data + (last.size + 511) // 512 * 512
    size = {"member": last.offset, "header": last.offset + 100, "data": end - 512, "end": end}[at]
    file.write_bytes(file.read_bytes()[:size])
    with pytest.raises(ValueError, match=r"flickr-val-000000.tar is cut short"):
        web("val", path=folder)


def test_a_folder_that_cannot_be_written_is_read(tmp_path, monkeypatch):
    _, folder = layouts.write("webdataset", tmp_path)
    monkeypatch.setattr(os, "access", lambda *a: False)
    assert len(web("train", path=folder)) == 6 and not (folder / webdataset.INDEX).exists()


def test_pictures_that_are_none_are_named(tmp_path):
    tar_of(tmp_path / "train.tar", ("1.jpg", b"x"), ("1.txt", b"a"))
    with pytest.raises(ValueError, match=r"cannot read the picture train.tar/1"):
        web("train", path=tmp_path).image(0)
