"""Filters: conditions over columns and arrays of ids, inside every plan; no way out of them."""

from threading import Event

import numpy as np
import pytest
from searcher_cases import clustered, full_sort

import divse
from divse.search import filters, plans
from divse.search.filters import select
from divse.search.gallery import Gallery
from divse.search.searcher import Searcher
from divse.sets import EmbeddingSets

pytest.importorskip("duckdb")

ALL = [1, 2, 3, 4, *range(6, 20)]
PLANS = ("auto", "exact", "certified", "prefilter")


@pytest.fixture(scope="module")
def rows(tmp_path_factory):
    """20 sets less two, with columns of many types."""
    columns = {
        "year": [None if row == 3 else 2000 + row for row in range(20)],
        "Label": ["cat", "dog"] * 10,
        "tags": [["a"], ["b", "c"]] * 10,
        "meta": [{"x": row} for row in range(20)],
        "half": np.arange(20, dtype=np.float16) - 10,
        "halves": [[np.float16(row), np.float16(0.5)] for row in range(20)],
        "json": [f'{{"n": {row}}}' for row in range(20)],
    }
    folder = tmp_path_factory.mktemp("rows") / "g"
    gallery = Gallery.create(folder, clustered(20), [f"i{row}" for row in range(20)], columns)
    return gallery.remove(["i0", "i5"])


@pytest.mark.parametrize(
    ("where", "expected"),
    [
        ("year >= 2016", [16, 17, 18, 19]),
        ("YEAR < 2004 and label in ('cat', 'owl')", [2]),
        ("year is null or id = 'i1'", [1, 3]),
        ("not (year > 2002)", [1, 2]),  # NULL is not selected
        ("list_contains(tags, 'b') and year > 2015", [17, 19]),
        ("len(list_filter(tags, lambda t: t = 'a')) = 1 and meta.x > 15", [16, 18]),
        ("len([t for t in tags if t = 'a']) = 1 and gallery.year > 2015", [16, 18]),
        ("half >= 8", [18, 19]),
        ("halves[1] >= 18", [18, 19]),
        ("(json->'$.n')::int >= 18", [18, 19]),
        ("json->>'$.n' = '7'", [7]),
        ("year > 2017 and len(list_filter([1, 2], lambda YEAR: year > 1)) = 1", [18, 19]),
        ("year between 2001 and 2002 -- a comment", [1, 2]),
        ("current_setting('threads') <= 4 and current_setting('memory_limit') = '2.0 GiB'", ALL),
        ("false", []),
        ("true", ALL),
    ],
)
def test_conditions(rows, where, expected):
    found = rows.ids[select(rows, where).positions]
    assert found.tolist() == [f"i{row}" for row in expected]


@pytest.mark.parametrize(
    ("where", "message"),
    [
        (
            "yaer > 2000",
            "unknown column 'yaer'; known are id .*: year, Label, tags, meta, half, halves, json",
        ),
        ('label = "cat"', "unknown column 'cat'.*single quotes"),
        ("", "expected a condition"),
        ("year >", "no condition: syntax error"),
        ("true); drop table gallery; select (true", "is no condition"),
        ("true) union select (1", "one expression"),
        ("true) limit (1", "one expression"),
        ("true) order by (id", "one expression"),
        ("year > (select 3)", "subqueries are not allowed"),
        ("exists(from '/etc/passwd')", "subqueries are not allowed"),
        ("id in (select content from read_text('/etc/passwd'))", "subqueries"),
        ("columns(*) > 2", "stars are not allowed"),
        ("row_number() over () > 2", "window functions are not allowed"),
        ("count(*) > 2", "aggregates"),
        ("year > ?", "parameters are not allowed"),
        ("year > 'abc'", "Could not convert"),
        ("nonsense(year)", "nonsense does not exist"),
        ("pg_sleep(year) is null", "pg_sleep is not allowed"),
        ("Sleep_MS(100) is null", "not allowed"),
        ("+".join(["1"] * 400) + " > 0", "nested too deep"),
        ("abs(" * 800 + "1" + ")" * 800 + " = 1", "nested too deep"),
        ('"position of the set" < 3', "unknown column"),
        ("read_text('/etc/passwd') is not null", "read_text"),
    ],
)
def test_what_is_no_condition_is_refused(rows, where, message):
    with pytest.raises(ValueError, match=message):
        select(rows, where)


def test_other_errors_are_clear(rows, monkeypatch):
    with pytest.raises(TypeError, match="where: got int"):
        select(rows, 7)
    with pytest.raises(KeyError, match="no sets with these ids in the gallery: 'i0', 'zz'"):
        select(rows, None, ["i1", "i0", "zz"])
    monkeypatch.setitem(__import__("sys").modules, "duckdb", None)
    assert select(rows, None, ["i1", "i19"]).positions.tolist() == [0, 17]
    with pytest.raises(ImportError, match=r"divse\[filters\]"):
        select(rows, "year > 0")


def test_a_condition_that_takes_too_long_is_stopped(rows, monkeypatch):
    slow = "len(range(3000000 + coalesce(year, 0))) > 3"
    assert select(rows, slow).count == 18
    monkeypatch.setattr(filters, "SECONDS", 0.02)
    with pytest.raises(TimeoutError, match="took longer than 0.02 s: write a simpler"):
        select(rows, slow)


def test_a_condition_that_cannot_be_stopped_is_not_waited_for(rows, monkeypatch):
    """DuckDB hears of an interrupt between blocks of rows, and one block may take hours."""
    heard, over = Event(), Event()

    class Deaf:
        def interrupt(self):
            heard.set()

    def hours():
        over.wait(60)
        return np.arange(2)

    for name in ("SECONDS", "GRACE"):
        monkeypatch.setattr(filters, name, 0.02)
    with pytest.raises(TimeoutError):
        filters._in_time(Deaf(), hours)
    assert heard.is_set() and not over.is_set()
    over.set()
    heard.clear()
    assert filters._in_time(Deaf(), lambda: np.arange(2)).tolist() == [0, 1]
    assert not heard.is_set()


def filtered_sort(data, mask, topk):
    gallery, queries, values = data
    scores, order = full_sort(queries, values[mask], topk)
    return scores, gallery.ids[np.flatnonzero(mask)[order]]


@pytest.mark.parametrize("plan", PLANS)
@pytest.mark.parametrize("impl", ["auto", "reference"])
def test_every_plan_finds_the_best_of_what_is_left(small_gallery, monkeypatch, plan, impl):
    if (plan, impl) == ("certified", "reference"):
        pytest.skip("it has no certified scan")
    monkeypatch.setattr(plans, "BRUTE_FORCE", 0)
    gallery, queries, _ = small_gallery
    years = gallery.rows.column("year").to_pylist()
    mask = np.array([year is not None and year >= 2010 for year in years])
    search = Searcher(gallery)
    found = search.search(queries, 10, plan, where="year >= 2010", impl=impl)
    scores, ids = filtered_sort(small_gallery, mask, 10)
    np.testing.assert_allclose(found.scores, scores, atol=2e-6)
    assert (found.ids == ids).mean() > 0.99 and found.certified.all()
    assert search.last.survivors == mask.sum() and search.last.sets == 600


@pytest.mark.parametrize("plan", PLANS)
def test_few_and_none_left(small_gallery, plan):
    gallery, queries, _ = small_gallery
    search = Searcher(gallery)
    few = ["id 3", "id 599", "id 401"]
    found = search.search(queries, 10, plan, allowed=few)
    assert found.ids.shape == found.scores.shape == (20, 3)
    assert all(set(row) == set(few) for row in found.ids) and found.certified.all()
    both = search.search(queries, 2, plan, where="id <> 'id 3'", allowed=few)
    assert "id 3" not in both.ids and both.ids.shape == (20, 2)
    none = search.search(queries, 10, plan, where="year = 1900")
    assert none.ids.shape == none.scores.shape == (20, 0) and none.certified.all()
    assert search.last.survivors == 0 and search.last.candidates == 0
    assert search.search_positions(queries, 4, plan, allowed=few).ids.shape == (20, 3)
    assert search.search(queries, 4, plan, allowed=[]).ids.shape == (20, 0)


def test_prefilter_with_few_left_scans_them(small_gallery):
    gallery, queries, _ = small_gallery
    search = Searcher(gallery)
    chosen = search.explain("prefilter", where="year >= 2010")
    assert "they are scanned" in chosen.why and chosen.survivors < 600 and chosen.certified
    search.search(queries, 5, "prefilter", where="year >= 2010")
    assert search.last.seconds.keys() >= {"filter", "scan"} and search.last.depth is None


@pytest.mark.parametrize("spec", ["Flat", "IVF8,Flat", "IVF8,PQ8x4fs", "PQ8x4fs", "HNSW16"])
def test_an_index_looks_among_what_is_left(tmp_path, monkeypatch, spec):
    """The nearest elements are all excluded: what is left must still be found, all of it."""
    monkeypatch.setattr(plans, "BRUTE_FORCE", 0)
    values = clustered(250, seed=5)
    columns = {"n": list(range(250))}
    gallery = Gallery.create(tmp_path / "g", values, columns=columns).build_index(spec)
    gallery = gallery.remove(range(100, 140))
    queries = EmbeddingSets(values[:6])
    search = Searcher(gallery)
    found = search.search(queries, 10, "prefilter", depth=12, where="n >= 200 or n in (120, 150)")
    assert set(found.ids.ravel()) <= {150, *range(200, 250)}
    assert search.last.plan == "prefilter" and search.last.survivors == 51
    truth = search.search(queries, 10, "exact", where="n >= 200 or n in (120, 150)")
    assert np.mean([np.isin(a, b).mean() for a, b in zip(found.ids, truth.ids, strict=True)]) > 0.6
    deep = search.search(queries, 10, "prefilter", where="n >= 200 or n in (120, 150)")
    # Up to rounding: a scan sums queries that come together in another order than one alone.
    np.testing.assert_allclose(deep.scores, truth.scores, rtol=0, atol=1e-6)


@pytest.mark.parametrize("uneven", [False, True])
def test_bitmaps_cross_parts_segments_and_removed_sets(tmp_path, monkeypatch, uneven):
    monkeypatch.setattr("divse.search.stored_scan.PART_BYTES", 1 << 14)
    values = clustered(300)
    lengths = np.random.default_rng(0).integers(1, 5, 300) if uneven else None
    columns = {"n": list(range(300))}
    gallery = Gallery.create(tmp_path / "g", EmbeddingSets(values, lengths), columns=columns)
    more = EmbeddingSets(values[:40], None if lengths is None else lengths[:40])
    gallery = gallery.add(more, columns={"n": list(range(300, 340))}).remove(range(90, 130))
    left = [row for row in gallery.ids if row % 3 == 1 and row > 60]
    queries = EmbeddingSets(values[100:104], None if lengths is None else lengths[100:104])
    search = Searcher(gallery)
    exact, certified = (
        search.search(queries, len(left), plan, where="n % 3 = 1 and id > 60")
        for plan in ("exact", "certified")
    )
    assert sorted(exact.ids[0]) == left
    np.testing.assert_array_equal(certified.ids, exact.ids)
    np.testing.assert_array_equal(certified.scores, exact.scores)
    slow = search.search(queries, len(left), "exact", allowed=left, impl="reference")
    np.testing.assert_allclose(slow.scores, exact.scores, atol=2e-6)


def test_few_are_gathered_where_the_kernels_cannot_read_the_files(small_gallery, monkeypatch):
    gallery, queries, _ = small_gallery
    read = []
    monkeypatch.setattr(Gallery, "blocks", lambda *_: read.append(1))
    search = Searcher(gallery)
    found = search.search(queries, 9, "exact", allowed=gallery.ids[::40], impl="reference")
    assert not read
    expected = search.search(queries, 9, "exact", allowed=gallery.ids[::40])
    np.testing.assert_array_equal(found.ids, expected.ids)


def test_filters_of_streamed_blocks(tmp_path):
    kernels = pytest.importorskip("divse_kernels")
    gallery = Gallery.create(tmp_path / "g", clustered(14))
    before, launched = divse.calls["triton.search"], sum(kernels.launches.values())
    search = Searcher(gallery, resident=False)
    found = search.search(clustered(2), 9, "exact", allowed=range(3, 12), impl="triton")
    assert divse.calls["triton.search"] == before + 1 and sum(kernels.launches.values()) > launched
    assert sorted(found.ids[0]) == list(range(3, 12))


def test_a_condition_is_evaluated_once_for_many_batches(small_gallery, monkeypatch):
    gallery, queries, _ = small_gallery
    search = Searcher(gallery)
    first = search.search(queries, 3, where="year > 2000")
    monkeypatch.setattr("divse.search.filters.matching", None)
    second = search.search(queries, 3, where="year > 2000")
    np.testing.assert_array_equal(first.ids, second.ids)


@pytest.mark.parametrize("plan", ["exact", "certified", "prefilter"])
@pytest.mark.parametrize("spec", ["Flat", "Sketch8"])
def test_a_segment_without_sets_hides_none_of_the_next(tmp_path, monkeypatch, plan, spec):
    """A gallery whose sets were all removed keeps a segment, where the next one begins too."""
    monkeypatch.setattr(plans, "BRUTE_FORCE", 0)
    values = clustered(40)
    gallery = Gallery.create(tmp_path / "g", values[:20]).build_index(spec)
    gallery = gallery.remove(range(20)).add(values[20:])
    assert [segment.start for segment in gallery.segments] == [0, 0]
    search = Searcher(gallery)
    found = search.search(values[20:], 4, plan, allowed=[21, 25, 26, 39])
    assert (np.sort(found.ids) == [21, 25, 26, 39]).all()
    assert found.ids[5, 0] == 25 and found.ids[19, 0] == 39
