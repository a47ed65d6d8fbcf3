"""Galleries that are damaged or foreign: found, named, harmless."""

import json
import shutil

import numpy as np
import pyarrow as pa
import pytest
from gallery_cases import ragged, sets
from gallery_manifests import edit_manifest, segment

from divse.search.durable import checksum_bytes
from divse.search.gallery import Gallery
from divse.search.manifest import GalleryError


@pytest.fixture
def stored(tmp_path):
    Gallery.create(tmp_path / "g", ragged(), [f"set {row}" for row in range(20)])
    return tmp_path / "g"


@pytest.mark.parametrize("name", ["embeddings.npy", "offsets.npy", "rows.arrow"])
def test_file_damage_is_found_and_named(stored, name):
    path = segment(stored) / name
    whole = path.read_bytes()
    path.write_bytes(whole[:-1])
    with pytest.raises(GalleryError, match=f"{name} is truncated"):
        Gallery.open(stored)
    path.write_bytes(whole + b"x")
    with pytest.raises(GalleryError, match=f"{name} is too long"):
        Gallery.open(stored)
    path.unlink()
    with pytest.raises(GalleryError, match=f"{name} is missing"):
        Gallery.open(stored)
    path.write_bytes(whole)
    Gallery.open(stored).verify()
    flipped = bytearray(whole)
    flipped[len(whole) // 2] ^= 1
    path.write_bytes(bytes(flipped))
    with pytest.raises(GalleryError, match=name):
        Gallery.open(stored).verify()


def test_header_that_does_not_fit_the_manifest(stored):
    path = segment(stored) / "embeddings.npy"
    header = path.read_bytes()
    path.write_bytes(header.replace(b"<f2", b"<i2"))
    with pytest.raises(GalleryError, match=r"<i2.*the manifest says float16"):
        Gallery.open(stored)
    pickled = np.array([None] * 3, dtype=object)
    np.save(path, pickled, allow_pickle=True)
    path.write_bytes(path.read_bytes().ljust(len(header), b"\0"))
    with pytest.raises(GalleryError, match="embeddings.npy is damaged"):
        Gallery.open(stored)


def test_offsets_that_do_not_divide_the_elements(stored):
    path = segment(stored) / "offsets.npy"
    offsets = np.load(path)
    offsets[3] = 10**9
    np.save(path, offsets)
    with pytest.raises(GalleryError, match="offsets do not divide"):
        Gallery.open(stored)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"version": 2}, "newer divse.*version 2.*update divse"),
        ({"requires": ["layers"]}, "newer divse.*layers"),
        ({"version": "1"}, "damaged: version '1'"),
        ({"format": "other"}, "not a divse gallery"),
        ({"dtype": "float64"}, "damaged.*float64"),
        ({"dim": -8}, "damaged.*-8"),
        ({"segments": {}}, "damaged"),
        ({"segments": [{"name": "../../etc"}]}, "damaged.*segment name"),
        ({"metadata": 3}, "damaged"),
    ],
)
def test_manifest_damage_is_named(stored, changes, message):
    edit_manifest(stored, **changes)
    with pytest.raises(GalleryError, match=message):
        Gallery.open(stored)


def test_manifest_is_checked_against_its_own_checksum(stored):
    edit_manifest(stored)
    Gallery.open(stored)
    edit_manifest(stored, sign=False, generation=7)
    with pytest.raises(GalleryError, match="its own checksum"):
        Gallery.open(stored)
    (stored / "manifest.json").write_bytes(b"\xff{")
    with pytest.raises(GalleryError, match="not JSON"):
        Gallery.open(stored)


def test_foreign_and_missing_folders(tmp_path, stored):
    with pytest.raises(FileNotFoundError, match="no gallery at"):
        Gallery.open(tmp_path / "nowhere")
    (tmp_path / "photos").mkdir()
    (tmp_path / "photos" / "a.jpg").touch()
    with pytest.raises(GalleryError, match="not a gallery"):
        Gallery.open(tmp_path / "photos")
    with pytest.raises(FileExistsError, match="choose another folder"):
        Gallery.create(tmp_path / "photos", sets(), overwrite=True)
    assert (tmp_path / "photos" / "a.jpg").exists()


def test_links_out_of_the_gallery_are_refused(stored, tmp_path):
    inside, outside = segment(stored), tmp_path / "elsewhere"
    shutil.move(inside, outside)
    inside.symlink_to(outside)
    with pytest.raises(GalleryError, match="link"):
        Gallery.open(stored)


def test_unknown_files_of_a_later_divse_are_verified_but_not_needed(stored):
    codes = segment(stored) / "later.npy"
    codes.write_bytes(b"later")
    content = json.loads((stored / "manifest.json").read_text())
    entry = {"bytes": 5, "blake2b": checksum_bytes(b"later")}
    content["segments"][0]["files"]["later.npy"] = entry
    edit_manifest(stored, segments=content["segments"])
    Gallery.open(stored).verify()
    codes.write_bytes(b"Later")
    with pytest.raises(GalleryError, match="later.npy"):
        Gallery.open(stored).verify()


def test_numpy_and_pyarrow_alone_can_read_it(stored):
    manifest = json.loads((stored / "manifest.json").read_text())
    assert (manifest["format"], manifest["version"]) == ("divse-gallery", 1)
    folder = stored / manifest["segments"][0]["name"]
    packed, offsets = np.load(folder / "embeddings.npy"), np.load(folder / "offsets.npy")
    given = ragged()
    first = packed[offsets[4] : offsets[5]]
    np.testing.assert_array_equal(first, given.values[4, : given.lengths[4]].astype(np.float16))
    with pa.memory_map(str(folder / "rows.arrow")) as source:
        assert pa.ipc.open_file(source).read_all().column("id")[4].as_py() == "set 4"


@pytest.mark.parametrize("value", [np.nan, np.inf, 0.0, 3.0])
def test_elements_that_are_no_unit_vectors_are_found(stored, value):
    path = segment(stored) / "embeddings.npy"
    array = np.load(path, mmap_mode="r+")
    array[17] = value
    array.flush()
    content = json.loads((stored / "manifest.json").read_text())
    file = {"bytes": path.stat().st_size, "blake2b": checksum_bytes(path.read_bytes())}
    content["segments"][0]["files"]["embeddings.npy"] = file
    edit_manifest(stored, segments=content["segments"])
    with pytest.raises(GalleryError, match="element 17 is no unit vector"):
        Gallery.open(stored).verify()
