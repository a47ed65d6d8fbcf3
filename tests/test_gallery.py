"""Galleries on disk: round trips, changes, and what is refused on the way in."""

import hypothesis
import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet
import pytest
import torch
from gallery_cases import assert_same, ragged, sets, vectors
from hypothesis import strategies as st

from divse.cli.embedding_files import read_embeddings
from divse.search import intake
from divse.search.gallery import Gallery
from divse.search.manifest import GalleryError
from divse.sets import EmbeddingSets
from divse.similarity.quantise import quantise


@pytest.mark.parametrize("dtype", ["float16", "float32"])
@pytest.mark.parametrize("make", [sets, ragged])
def test_round_trip(tmp_path, make, dtype):
    given = make()
    names = [f"set {row}" for row in range(len(given))]
    Gallery.create(
        tmp_path / "g", given, names, {"year": range(2000, 2020)}, dtype=dtype, metadata={"a": 1}
    )
    gallery = Gallery.open(tmp_path / "g")
    assert (len(gallery), gallery.dim, gallery.metadata) == (20, 8, {"a": 1})
    assert gallery.ragged == (given.lengths is not None)
    assert_same(gallery.sets(), given, dtype)
    assert gallery.ids.tolist() == names
    assert gallery.columns["year"].to_pylist() == list(range(2000, 2020))
    assert gallery.take_rows([3]) == [{"id": "set 3", "year": 2003}]
    gallery.verify()


def test_rows_come_from_any_block_in_any_order(tmp_path):
    """Several blocks a segment, several segments, sets removed; a row twice, none at all."""
    values = vectors(90, 2, 8)
    blocks = (EmbeddingSets(values[first : first + 7]) for first in range(0, 60, 7))
    gallery = Gallery.create(tmp_path / "g", blocks, columns={"year": range(63)})
    gallery = gallery.add(values[63:], columns={"year": range(63, 90)}).remove([0, 20, 64])
    kept = [n for n in range(90) if n not in (0, 20, 64)]
    asked = np.array([86, 3, 18, 18, 0, 59, 60, 40])
    assert gallery.take_rows(asked) == [{"id": kept[n], "year": kept[n]} for n in asked]
    assert gallery.take_ids(asked.reshape(2, 4)).tolist() == [
        [kept[n] for n in row] for row in asked.reshape(2, 4)
    ]
    assert gallery.take_ids(np.empty((2, 0), np.int64)).shape == (2, 0)


def test_whole_uniform_gallery_is_a_memory_map(tmp_path):
    gallery = Gallery.create(tmp_path / "g", sets())
    assert not gallery.segments[0].embeddings.flags.writeable
    assert np.shares_memory(gallery.sets().values, gallery.segments[0].embeddings)
    for _, block in gallery.blocks(1):
        assert np.shares_memory(block.values, gallery.sets().values)


@pytest.mark.parametrize("make", [sets, ragged])
def test_streams_in_blocks_and_reads_in_blocks(tmp_path, monkeypatch, make):
    monkeypatch.setattr(intake, "BLOCK_BYTES", 3 * 5 * 8 * 4)  # about three sets at a time
    given, seen = make(), []
    stream = (given[start : start + 7] for start in range(0, 20, 7))
    gallery = Gallery.create(
        tmp_path / "g", stream, iter(range(100, 120)), {"n": iter("abcd" * 5)}, progress=seen.append
    )
    assert sum(seen) == 20 and max(seen) < 7
    assert_same(gallery.sets(), given, "float16")
    assert gallery.ids.tolist() == list(range(100, 120))
    for start, block in gallery.blocks(6 * 8 * 2 * 5):
        assert_same(block, given[start : start + len(block)], "float16")


def test_torch_and_plain_arrays_are_taken(tmp_path):
    values = vectors(3, 2, 8)
    for number, given in enumerate([values, torch.from_numpy(values), [values[:1], values[1:]]]):
        gallery = Gallery.create(tmp_path / str(number), given, dtype="float32")
        np.testing.assert_array_equal(gallery.sets().values, values)


def test_elements_are_normalised_on_the_way_in(tmp_path):
    values = vectors(3, 2, 8)
    scale = np.array([1e-30, 7, 1e30], dtype=np.float32)[:, None, None]
    gallery = Gallery.create(tmp_path / "g", values * scale, dtype="float32")
    np.testing.assert_allclose(gallery.sets().values, values, atol=1e-6)


@pytest.mark.parametrize("make", [sets, ragged])
def test_add_leaves_earlier_readers_alone(tmp_path, make):
    first, second = make(seed=1), make(6, seed=2)
    old = Gallery.create(tmp_path / "g", first, columns={"n": list(range(20))})
    new = old.add(second, columns={"n": list(range(6))})
    assert (len(old), len(new), len(Gallery.open(tmp_path / "g"))) == (20, 26, 26)
    assert new.ids.tolist() == list(range(26))
    assert_same(new.sets(np.arange(20, 26)), second, "float16")
    mixed = np.array([25, 3, 20, 19])
    assert_same(new.sets(mixed), EmbeddingSets.cat([first, second])[mixed].numpy(), "float16")
    assert [start for start, _ in new.blocks()] == [0, 20]
    assert new.set_sizes().sum() == new.manifest.elements
    new.verify()


def test_add_goes_to_the_state_on_disk(tmp_path):
    first = Gallery.create(tmp_path / "g", sets())
    first.add(sets(seed=1))
    assert len(first.add(sets(seed=2))) == 60  # nothing of the other writer is lost


@pytest.mark.parametrize("make", [sets, ragged])
def test_remove_update_and_compact(tmp_path, make):
    first, second = make(seed=1), make(6, seed=2)
    names = [f"set {row}" for row in range(26)]
    years = {"year": list(range(20))}
    old = Gallery.create(tmp_path / "g", first, names[:20], years)
    both = old.add(second, names[20:], {"year": list(range(20, 26))})
    fewer = both.remove([names[3], names[25], names[19]])
    kept = [row for row in range(26) if row not in (3, 19, 25)]
    everything = EmbeddingSets.cat([first, second])
    assert (len(old), len(both), len(fewer)) == (20, 26, 23)
    assert fewer.ids.tolist() == [names[row] for row in kept]
    assert fewer.columns["year"].to_pylist() == kept
    assert_same(fewer.sets(), everything[np.array(kept)].numpy(), "float16")
    for start, block in fewer.blocks(6 * 8 * 2 * 5):
        assert_same(
            block, everything[np.array(kept[start : start + len(block)])].numpy(), "float16"
        )
    again = fewer.remove(names[5])
    newer = again.update([names[0], names[21]], second[:2], {"year": [100, 121]})
    expected = [names[row] for row in kept if row not in (0, 5, 21)] + [names[0], names[21]]
    assert newer.ids.tolist() == expected
    assert newer.take_rows([21]) == [{"id": names[21], "year": 121}]
    assert_same(newer.sets(np.array([20, 21])), second[:2], "float16")
    newer.verify()
    before = newer.sets()
    whole = newer.compact()
    assert (len(whole.segments), whole.manifest.requires) == (1, ())
    assert whole.ids.tolist() == expected
    assert_same(whole.sets(), before, "float16")
    assert whole.set_sizes().tolist() == newer.set_sizes().tolist()
    whole.verify()
    assert_same(both.sets(), everything, "float16")  # an open reader keeps what it sees
    assert [path.name for path in whole.path.glob("segment-*")] == [whole.segments[0].entry.name]
    assert whole.compact().manifest == whole.manifest


def test_unknown_ids_are_named(tmp_path):
    gallery = Gallery.create(tmp_path / "g", sets(3), ["a", "b", "c"])
    with pytest.raises(KeyError, match="'x', 'y' \\(2 in all\\)"):
        gallery.remove(["a", "x", "y"])
    with pytest.raises(KeyError, match="'x'"):
        gallery.update(["a", "x"], sets(2))
    with pytest.raises(TypeError, match="ids are string; these are int64"):
        gallery.remove([1])
    assert len(gallery.remove(["a", "x"], missing_ok=True)) == 2
    assert gallery.update(["b", "x"], sets(2), insert=True).ids.tolist() == ["c", "b", "x"]


def test_everything_can_be_removed_and_added_again(tmp_path):
    gallery = Gallery.create(tmp_path / "g", sets(3)).add(sets(2))
    empty = gallery.remove(range(5))
    assert (len(empty), len(empty.compact()), list(empty.blocks())) == (0, 0, [])
    assert len(empty.sets()) == 0 and empty.ids.tolist() == []
    again = Gallery.open(tmp_path / "g").add(sets(2, seed=5))
    assert again.ids.tolist() == [5, 6]
    assert_same(again.sets(), sets(2, seed=5), "float16")


@pytest.mark.parametrize("make", [sets, ragged])
def test_codes_lie_beside_the_embeddings(tmp_path, make):
    gallery = Gallery.create(tmp_path / "g", make()).add(make(5, seed=3))
    for segment in gallery.segments:
        stored = torch.from_numpy(segment.embeddings.reshape(-1, 1, 8).copy())
        codes, scales, residuals = (part.reshape(-1) for part in segment.int8)
        expected = quantise(stored)
        np.testing.assert_array_equal(codes, expected.codes.numpy().reshape(-1))
        np.testing.assert_array_equal(scales, expected.scales.numpy().reshape(-1))
        assert (np.abs(residuals - expected.residuals.numpy().reshape(-1)) <= 1e-6).all()
    plain = Gallery.create(tmp_path / "p", make(), codes=False).add(make(5))
    assert [segment.int8 for segment in plain.segments] == [None, None]


@pytest.mark.parametrize("make", [sets, ragged])
@pytest.mark.parametrize("name", ["out.parquet", "out.npy"])
def test_export_can_be_read_back(tmp_path, make, name):
    gallery = Gallery.create(tmp_path / "g", make(), columns={"n": list("abcdefghijklmnopqrst")})
    gallery = gallery.remove([4, 7]).add(make(3, seed=9), columns={"n": list("xyz")})
    gallery.export(tmp_path / name)
    with pytest.raises(FileExistsError, match="choose another name"):
        gallery.export(tmp_path / name)
    if name == "out.parquet":
        table = pyarrow.parquet.read_table(tmp_path / name)
        elements = np.array([e for row in table.column("embeddings").to_pylist() for e in row])
    else:
        table = pyarrow.parquet.read_table(tmp_path / "out.rows.parquet")
        elements = np.load(tmp_path / name).reshape(-1, 8)
        if gallery.ragged:
            sizes = np.load(tmp_path / "out.lengths.npy")
            np.testing.assert_array_equal(sizes, gallery.set_sizes())
    assert table.select(["id", "n"]).to_pylist() == gallery.rows.to_pylist()
    given = gallery.sets()
    real = np.arange(given.k) < gallery.set_sizes()[:, None]
    np.testing.assert_array_equal(elements, given.values[real])
    assert not list(tmp_path.glob(".*"))
    source = read_embeddings(tmp_path / name)
    again = Gallery.create(tmp_path / "again", source.blocks, source.ids, source.columns)
    assert_same(again.sets(), given, "float16")
    assert again.rows.to_pylist() == gallery.rows.to_pylist()


def test_what_a_killed_build_left_is_no_obstacle(tmp_path):
    (tmp_path / "g" / "segment-000000-01234567").mkdir(parents=True)
    (tmp_path / "g" / "segment-000000-01234567" / "embeddings.npy").touch()
    with pytest.raises(GalleryError, match="not a gallery"):
        Gallery.open(tmp_path / "g")
    Gallery.create(tmp_path / "g", sets(), metadata={10: 1, 2: (3, 4)})
    assert Gallery.open(tmp_path / "g").metadata == {"10": 1, "2": [3, 4]}
    assert len(list((tmp_path / "g").iterdir())) == 3


def test_overwrite_replaces_and_needs_to_be_asked_for(tmp_path):
    Gallery.create(tmp_path / "g", sets())
    with pytest.raises(FileExistsError, match="overwrite=True"):
        Gallery.create(tmp_path / "g", sets(5))
    with pytest.raises(ValueError, match="twice"):
        Gallery.create(tmp_path / "g", sets(2), ids=["a", "a"], overwrite=True)
    assert len(Gallery.open(tmp_path / "g")) == 20
    Gallery.create(tmp_path / "g", sets(5, k=2), overwrite=True)
    assert (len(Gallery.open(tmp_path / "g")), Gallery.open(tmp_path / "g").k) == (5, 2)
    assert len(list((tmp_path / "g").iterdir())) == 3


@pytest.mark.parametrize(("bad", "word"), [(0.0, "zero"), (np.nan, "not finite"), (np.inf, "not")])
def test_element_without_direction_is_named(tmp_path, monkeypatch, bad, word):
    monkeypatch.setattr(intake, "BLOCK_BYTES", 5 * 4 * 8 * 4)
    values = vectors(20, 4, 8)
    values[13, 2] = bad
    with pytest.raises(ValueError, match=f"row 13: element 2 is {word}"):
        Gallery.create(tmp_path / "g", values)
    assert not (tmp_path / "g").exists()


@pytest.mark.parametrize(
    ("given", "arguments", "message"),
    [
        (sets(3), {"ids": ["a", "b", "a"]}, "'a' occurs twice"),
        (sets(3), {"ids": [1, 2]}, "fewer values of 'id' than sets"),
        (sets(3), {"ids": [1, 2, 3, 4]}, "more ids than sets"),
        (sets(3), {"ids": ["a", None, "b"]}, "1 ids are missing"),
        (sets(3), {"ids": [1.5, 2.5, 3.5]}, "strings or integers"),
        (sets(3), {"ids": [1, "b", 3]}, "one type"),
        (sets(3), {"ids": "abc"}, "not a str"),
        (sets(3), {"columns": {"id": [1, 2, 3]}}, "pass these values as ids="),
        (sets(3), {"columns": {"n": [1, 2]}}, "fewer values of 'n'"),
        (sets(3), {"columns": {"n": iter([1, 2, 3, 4])}}, "more values of column 'n'"),
        (sets(3), {"dtype": "int8"}, "expected float16 or float32"),
        (sets(0), {}, "no sets"),
        (iter(()), {}, "no sets"),
        ([sets(3), sets(3, k=2)], {}, "row 3 and after: sets have K=2"),
        ([sets(3), sets(3, d=16)], {}, "row 3: sets have D=16"),
        ([sets(3), ragged(4, k=4)], {}, "uniform with K=4"),
        (7, {}, "got int, expected EmbeddingSets"),
    ],
)
def test_wrong_input_is_refused_and_leaves_nothing(tmp_path, given, arguments, message):
    with pytest.raises((ValueError, TypeError), match=message):
        Gallery.create(tmp_path / "g", given, **arguments)
    assert not (tmp_path / "g").exists()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"ids": ["x"], "columns": {}}, "has columns"),
        ({"columns": {"n": [1]}}, "string ids"),
        ({"ids": [5], "columns": {"n": [1]}}, "ids are string"),
        ({"ids": ["a"], "columns": {"n": [1]}}, "'a' occurs twice"),
        ({"ids": ["x"], "columns": {"n": ["one"]}}, "'n' are not int64"),
    ],
)
def test_rows_that_do_not_fit_the_gallery(tmp_path, arguments, message):
    gallery = Gallery.create(tmp_path / "g", sets(2), ["a", "b"], {"n": [1, 2]})
    with pytest.raises((ValueError, TypeError), match=message):
        gallery.add(sets(1), **arguments)
    assert len(Gallery.open(tmp_path / "g")) == 2


def test_numbered_rows_follow_the_greatest_id(tmp_path):
    gallery = Gallery.create(tmp_path / "g", sets(2), ids=np.array([7, 3], dtype=np.uint8))
    assert gallery.add(sets(2, seed=1)).ids.tolist() == [7, 3, 8, 9]


def test_numbering_ends_where_int64_ends(tmp_path):
    gallery = Gallery.create(tmp_path / "g", sets(1), ids=[2**63 - 1])
    assert Gallery.open(tmp_path / "g").ids.tolist() == [2**63 - 1]
    with pytest.raises(ValueError, match="no greater integer ids"):
        gallery.add(sets(1))


def test_columns_that_arrow_stores_in_other_ways_are_decoded(tmp_path):
    texts = pa.array(["a", "b", "a"])
    columns = {
        "view": texts.cast(pa.string_view()),
        "dictionary": texts.dictionary_encode(),
        "runs": pc.run_end_encode(texts),
    }
    gallery = Gallery.create(tmp_path / "g", sets(3), columns=columns)
    assert set(gallery.manifest.columns.values()) == {"string"}
    gallery = gallery.add(sets(1), columns={name: texts[:1].cast(pa.string()) for name in columns})
    gallery = gallery.remove([1]).compact()
    gallery.verify()
    assert [row["runs"] for row in gallery.rows.to_pylist()] == ["a", "a", "a"]


def test_columns_of_any_arrow_type(tmp_path):
    tags = pa.chunked_array([[["a"], []], [["b", "c"]]])
    gallery = Gallery.create(tmp_path / "g", sets(3), columns={"tags": tags, "none": [None] * 3})
    assert gallery.add(sets(1, seed=1), columns={"tags": [["d"]], "none": [None]}).take_rows(
        [2, 3]
    )[1] == {"id": 3, "tags": ["d"], "none": None}


@hypothesis.settings(max_examples=15, deadline=None)
@hypothesis.given(st.data())
def test_any_sets_survive_the_round_trip(tmp_path_factory, data):
    n, k, d = (
        data.draw(st.integers(1, most), name) for most, name in ((9, "N"), (6, "K"), (9, "D"))
    )
    seed, split = data.draw(st.integers(0, 99)), data.draw(st.integers(0, n))
    given = data.draw(st.sampled_from([sets, ragged]))(n, k, d, seed)
    kind = data.draw(st.sampled_from([st.text(), st.integers(-(2**63), 2**63 - 1)]))
    ids = data.draw(st.lists(kind, min_size=n, max_size=n, unique=True))
    dtype = data.draw(st.sampled_from(["float16", "float32"]))
    parts = [part for part in (given[:split], given[split:]) if len(part)]
    folder = tmp_path_factory.mktemp("any")
    gallery = Gallery.create(folder / "g", parts[0], ids[: len(parts[0])], dtype=dtype)
    if len(parts) == 2:
        gallery = gallery.add(parts[1], ids[split:])
    gallery = Gallery.open(folder / "g")
    gallery.verify()
    assert gallery.ids.tolist() == ids
    assert_same(gallery.sets(), given, dtype)
