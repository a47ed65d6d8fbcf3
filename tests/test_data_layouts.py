"""Layouts that people have: the same pictures and captions come out, missing files are named."""

import json
from pathlib import Path

import layouts
import numpy as np
import pytest
from layouts import LAYOUTS, PICTURES, captions_of, numbers, tokens_of

from divse.data import DATASETS, Batches, Vocabulary
from divse.data.files import MissingFiles

SPLITS = ("train", "val", "test")


@pytest.fixture(scope="module")
def written(tmp_path_factory):
    """Each layout, written once; tests that change files write their own."""
    root = tmp_path_factory.mktemp("layouts")
    return {name: layouts.write(name, root / name) for name in LAYOUTS}


def load(written, layout, split, **options):
    name, folder = written[layout]
    return DATASETS[name](split, path=folder, **options)


@pytest.mark.parametrize("split", SPLITS)
@pytest.mark.parametrize("layout", LAYOUTS)
def test_pictures_and_captions_are_those_that_were_written(written, layout, split):
    data = load(written, layout, split)
    assert len(data) == PICTURES[split] and len(data.captions) == 5 * len(data)
    assert len(set(data.image_ids)) == len(data)
    for index, number in enumerate(numbers(split)):
        captions = data.captions_of(index)
        expected = captions_of(number)
        if layout == "regions_words":
            expected = [
                " ".join(",".join(tokens_of(c)).replace(",,", ",").split(",")) for c in expected
            ]
        assert captions == expected
        if data.read_image is not None:
            picture = data.image(index).astype(float)
            assert picture.shape == (32, 40, 3)
            assert abs(picture - layouts.pixels_of(number)).mean() < 20
        else:
            count = 1 + number % 8 if layout == "butd" else 36
            found = data.features(index)
            assert found.dtype == np.float32 and found.shape == (count, 2048)
            assert np.allclose(found, layouts.regions_of(number, count), rtol=1e-3)


@pytest.mark.parametrize("layout", LAYOUTS)
def test_batches_hold_what_the_data_holds(written, layout):
    data = load(written, layout, "train")
    settings = {"augment": ["resized_crop", "flip"]} if data.read_image else {"region_drop": 0.2}
    batches = Batches(data, Vocabulary.build(data.captions), 3, 16, **settings)
    for batch in batches.epoch(0):
        assert len(batch.tokens) == 15
        if data.read_image is not None:
            assert batch.image_inputs[0].shape == (3, 3, 16, 16)
        else:
            regions, counts = batch.image_inputs
            assert regions.shape == (3, int(counts.max()), 2048) and counts.min() >= 1
            assert not regions[0, counts[0] :].any()


def test_no_split_shares_a_picture_and_restval_joins_train(written):
    for layout in LAYOUTS:
        ids = [name for split in SPLITS for name in load(written, layout, split).image_ids]
        assert len(set(ids)) == len(ids)
    paths = load(written, "karpathy_coco", "train").image_paths
    assert {path.parent.name for path in paths} == {"train2014", "val2014"}


def test_regions_are_memory_mapped(written):
    data = load(written, "regions", "train")
    assert isinstance(data.read_features(0).base, np.memmap)


@pytest.mark.parametrize(
    ("layout", "gone"),
    [
        ("karpathy_coco", "val2014/COCO_val2014_000000001006.jpg"),
        ("karpathy_flickr30k", "flickr30k-images/1000092801.jpg"),
        ("regions", "dev_ims.npy"),
        ("regions", "dev_caps.txt"),
        ("regions_words", "dev_precaps_stan.txt"),
        ("id_mapping", "images/train2014/COCO_train2014_000000001006.jpg"),
        ("id_mapping", "precomp/dev_ids.txt"),
        ("coco_captions", "annotations/coco_dev_ids.npy"),
        ("coco_captions", "annotations/captions_val2014.json"),
        ("coco_captions", "images/val2014/COCO_val2014_000000001006.jpg"),
        ("huggingface_saved", "validation/data-00001-of-00002.arrow"),
        ("huggingface_saved", "validation/state.json"),
        ("huggingface_parquet", "data/validation-00000-of-00002.parquet"),
        ("webdataset", "flickr-val-000000.tar"),
    ],
)
def test_a_missing_file_is_named(tmp_path, layout, gone):
    name, folder = layouts.write(layout, tmp_path)
    if layout == "webdataset":  # a gap shows only between others
        (folder / "flickr-val-000002.tar").write_bytes((folder / gone).read_bytes())
        gone = "flickr-val-000001.tar"
    (folder / gone).unlink()
    with pytest.raises(MissingFiles, match=Path(gone).name) as caught:
        DATASETS[name]("val", path=folder)
    assert caught.value.paths == [folder / gone] and caught.value.total >= 1


def test_many_missing_pictures_are_counted_and_the_first_named(tmp_path):
    name, folder = layouts.write("karpathy_flickr30k", tmp_path)
    for path in (folder / "flickr30k-images").iterdir():
        path.unlink()
    with pytest.raises(MissingFiles, match=r"6 of 6 pictures .*; and 1 more .*images=") as caught:
        DATASETS[name]("train", path=folder)
    assert len(caught.value.paths) == 6


def test_pictures_may_lie_elsewhere(tmp_path):
    name, folder = layouts.write("karpathy_coco", tmp_path / "a")
    (folder / "val2014").rename(tmp_path / "val2014")
    (folder / "train2014").rename(tmp_path / "train2014")
    (folder / "annotations").mkdir()
    (folder / "dataset_coco.json").rename(folder / "annotations" / "dataset_coco.json")
    with pytest.raises(MissingFiles):
        DATASETS[name]("val", path=folder)
    assert DATASETS[name]("val", path=folder, images=tmp_path).image(0).shape == (32, 40, 3)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("{", "is not JSON"),
        ("[]", "has no list called images"),
        ('{"images": [{"filename": "a"}]}', r"images\[0\]: no 'split'"),
        (
            '{"images": [{"filename": "a", "split": "x", "sentences": []}]}',
            r"images\[0\]: unknown split 'x'",
        ),
        ('{"images": []}', "no pictures with captions in split 'val'"),
        ('{"images": ["a"]}', r"images\[0\]: no 'filename'"),
        (
            '{"images": [{"filename": 3, "split": "val", "sentences": []}]}',
            "'filename' must be text, got 3",
        ),
        (
            '{"images": [{"filename": "a", "split": "val", "sentences": null}]}',
            "'sentences' must be a list, got None",
        ),
        (
            '{"images": [{"filename": "a", "split": "val", "sentences": [{"raw": null}]}]}',
            "a sentence without text 'raw'",
        ),
    ],
)
def test_broken_split_files_are_refused(tmp_path, content, message):
    (tmp_path / "dataset_coco.json").write_text(content)
    with pytest.raises(ValueError, match=message):
        DATASETS["karpathy"]("val", path=tmp_path)


def write_regions(folder, features, captions, split="dev"):
    np.save(folder / f"{split}_ims.npy", features)
    layouts.write_lines(folder / f"{split}_caps.txt", captions)


def test_all_pictures_of_a_split_are_there_not_a_thousand(tmp_path):
    write_regions(tmp_path, np.ones((1003, 1, 2), np.float32), map(str, range(5015)))
    data = DATASETS["regions"]("val", path=tmp_path)
    assert len(data) == 1003 and data.captions_of(1002) == [str(i) for i in range(5010, 5015)]


def test_rows_are_copies_only_if_they_are_equal(tmp_path):
    rows = np.arange(20, dtype=np.float32).reshape(10, 1, 2)
    write_regions(tmp_path, rows, map(str, range(10)))
    assert len(DATASETS["regions"]("val", path=tmp_path)) == 10
    write_regions(tmp_path, rows[:2].repeat(5, axis=0), map(str, range(10)))
    data = DATASETS["regions"]("val", path=tmp_path)
    assert len(data) == 2 and (data.features(1) == rows[1]).all()


def test_the_test_split_may_be_the_first_thousand(tmp_path):
    _, folder = layouts.write("regions", tmp_path)
    write_regions(folder, layouts.regions_of(0)[None], captions_of(0), "test")
    assert len(DATASETS["regions"]("test", path=folder)) == PICTURES["test"]
    assert len(DATASETS["regions"]("test", path=folder, test="test")) == 1


@pytest.mark.parametrize(
    ("features", "captions", "message"),
    [
        (np.ones((2, 1, 2), np.float32), ["a"] * 9, "9 captions cannot belong to 2 pictures"),
        (np.ones((2, 2), np.float32), ["a"] * 10, r"expected floats .* got float32 \(2, 2\)"),
        (np.ones((2, 1, 2), np.int64), ["a"] * 10, "expected floats"),
        (np.ones((1, 1, 2), np.float32), ["a", "", "c", "d", "e"], "line 2: an empty caption"),
        (np.array([{"an": "object"}]), ["a"] * 5, "no .npy file of plain numbers"),
    ],
)
def test_broken_regions_are_refused(tmp_path, features, captions, message):
    write_regions(tmp_path, features, captions)
    with pytest.raises(ValueError, match=message):
        DATASETS["regions"]("val", path=tmp_path)


def test_regions_that_are_no_numbers_are_named(tmp_path):
    features = np.ones((2, 3, 2), np.float32)
    features[1, 2] = np.nan
    write_regions(tmp_path, features, map(str, range(10)))
    data = DATASETS["regions"]("val", path=tmp_path)
    assert data.features(0).shape == (3, 2)
    with pytest.raises(ValueError, match=r"/val: the features of picture 1 hold numbers that are"):
        data.features(1)


def test_files_of_nothing_and_of_other_encodings_are_named(tmp_path):
    write_regions(tmp_path, np.ones((1, 1, 2), np.float32), list("abcde"))
    (tmp_path / "dev_caps.txt").write_bytes("café\n".encode("latin-1") * 5)
    with pytest.raises(ValueError, match=r"dev_caps.txt is not UTF-8"):
        DATASETS["regions"]("val", path=tmp_path)
    (tmp_path / "dev_ims.npy").write_bytes(b"")
    with pytest.raises(ValueError, match=r"dev_ims.npy is no .npy file"):
        DATASETS["regions"]("val", path=tmp_path)
    (tmp_path / "captions.csv").write_bytes("image,caption\na.jpg,café\n".encode("latin-1"))
    with pytest.raises(ValueError, match=r"captions.csv is not UTF-8"):
        DATASETS["captions"]("val", path=tmp_path / "captions.csv")


def test_ids_that_do_not_fit_are_noticed_and_not_needed(tmp_path):
    write_regions(tmp_path, np.ones((2, 1, 2), np.float32), map(str, range(10)))
    layouts.write_lines(tmp_path / "dev_ids.txt", [7, 8, 9])
    with pytest.warns(UserWarning, match="3 ids for 2 pictures"):
        assert DATASETS["regions"]("val", path=tmp_path).image_ids == ["0", "1"]


def test_tsv_files_are_converted_once(tmp_path):
    name, folder = layouts.write("butd", tmp_path)
    DATASETS[name]("train", path=folder)
    assert np.load(folder / "regions.npy").dtype == np.float16
    for file in folder.glob("*.tsv.*"):
        file.unlink()
    assert len(DATASETS[name]("val", path=folder)) == PICTURES["val"]


def test_a_look_at_tsv_files_converts_nothing(tmp_path):
    name, folder = layouts.write("butd", tmp_path)
    assert len(DATASETS[name]("train", path=folder, convert=False)) == PICTURES["train"]
    assert not (folder / "regions.npy").exists()


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda text: text[:-9000], "cannot be features of b'1' boxes; is the file cut short"),
        (lambda text: text.rstrip()[:-4], "cannot be features of b'1' boxes"),
        (lambda text: text.replace("\t480\t6\t", "\t480\t0\t"), "features of b'0' boxes"),
        (lambda text: "\t480\t".join(text.rsplit("\t640\t480\t", 1)), "line 6: expected the 6"),
        (lambda text: text.split("\n", 1)[1], "1 of 6 pictures of train are in none"),
    ],
)
def test_broken_tsv_files_are_refused(tmp_path, damage, message):
    name, folder = layouts.write("butd", tmp_path)
    file = folder / "karpathy_train_resnet101_faster_rcnn_genome.tsv.1"
    file.write_text(damage(file.read_text()))
    with pytest.raises(ValueError, match=message):
        DATASETS[name]("train", path=folder)


def test_a_look_at_tsv_files_sees_a_line_cut_short(tmp_path):
    name, folder = layouts.write("butd", tmp_path)
    file = folder / "karpathy_train_resnet101_faster_rcnn_genome.tsv.1"
    whole = file.read_bytes()
    file.write_bytes(whole.replace(b"\n", b"\r\n") + b"\n")  # as Windows writes it, a blank line
    assert len(DATASETS[name]("train", path=folder, convert=False)) == PICTURES["train"]
    file.write_bytes(whole[:-4000])
    with pytest.raises(ValueError, match="line 6: .* is the file cut short"):
        DATASETS[name]("train", path=folder, convert=False)


def test_ids_of_other_files_are_refused(tmp_path):
    name, folder = layouts.write("coco_captions", tmp_path / "a")
    np.save(folder / "annotations" / "coco_dev_ids.npy", np.array([1, 2]))
    with pytest.raises(ValueError, match="2 of 2 ids of coco_dev_ids.npy are no annotations"):
        DATASETS[name]("val", path=folder)
    (folder / "annotations" / "captions_val2014.json").write_text("{}")
    with pytest.raises(ValueError, match=r"captions_val2014.json in .* has no lists annotations"):
        DATASETS[name]("val", path=folder)
    name, folder = layouts.write("id_mapping", tmp_path / "b")
    (folder / "precomp" / "testall_ids.txt").write_text("")
    with pytest.raises(ValueError, match=r"testall_ids.txt"):
        DATASETS[name]("test", path=folder)
    (folder / "id_mapping.json").write_text(json.dumps({"1": "a.jpg"}))
    with pytest.raises(ValueError, match=r"3 of 3 ids of .*dev_ids.txt are not in"):
        DATASETS[name]("val", path=folder)
