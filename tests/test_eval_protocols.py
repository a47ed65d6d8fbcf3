"""COCO, CxC, ECCV Caption and PMRP on a tiny COCO, against plain references and eccv-caption."""

import json
import warnings
from dataclasses import replace
from importlib.util import find_spec

import numpy as np
import pytest
from eval_cases import (
    caption_name,
    corpus,
    first_five,
    image_name,
    map_at_r,
    mean,
    r_precision,
    ranking,
    recall,
    sets,
    write_csv,
    write_cxc,
    write_instances,
    write_pairs,
)

from divse.evaluation.corpus import Corpus
from divse.evaluation.eccv import coco_test_ids, coco_test_images, package_folder
from divse.evaluation.protocols import PROTOCOLS, Sources, answer
from divse.evaluation.scores import MatrixScores, SetScores
from divse.similarity import score

DATA = corpus()
KEPT = first_five(DATA)
OWNER = DATA.image_of_caption
IMAGES = list(range(DATA.images))
WAYS = ("image_to_caption", "caption_to_image")
needs_package = pytest.mark.skipif(
    find_spec("eccv_caption") is None, reason="eccv-caption is not installed"
)


def matrix(levels=6, seed=0):
    """Scores with many ties."""
    return np.random.default_rng(seed).integers(0, levels, (DATA.images, DATA.captions)) / levels


def measured(name, scores, sources=None, data=DATA):
    """Figures of a protocol, and the protocol."""
    protocol = PROTOCOLS[name](data, sources or Sources()).without({"i2i", "t2t"})
    (found,) = answer([protocol], {"i2t": MatrixScores(scores)}, block=7)
    return {name: figure.value for name, figure in found.figures.items()}, protocol


def test_first_five_captions_of_each_picture():
    assert DATA.captions == 52
    assert DATA.first_captions().tolist() == KEPT and len(KEPT) == 50
    shuffled = replace(DATA, image_of_caption=np.random.default_rng(5).permutation(OWNER))
    assert shuffled.first_captions().tolist() == first_five(shuffled)


def whole(scores, pictures, captions):
    """Recalls among some pictures and their captions, by sorting."""
    found = {}
    for k in (1, 5, 10):
        found[f"i2t_r{k}"] = mean(
            recall(scores[i], captions, {t for t in captions if OWNER[t] == i}, k) for i in pictures
        )
        found[f"t2i_r{k}"] = mean(
            recall(scores[:, t], pictures, {int(OWNER[t])}, k) for t in captions
        )
    return found | {"rsum": sum(found.values())}


@pytest.mark.parametrize("levels", [1, 4, 1000])
def test_coco_5k_and_flickr_rank_all_pictures_with_five_captions_each(levels):
    scores = matrix(levels)
    for name, title in (("coco-5k", "COCO 10"), ("f30k", "Flickr30K 10")):
        got, protocol = measured(name, scores)
        assert got == pytest.approx(whole(scores, IMAGES, KEPT))
        assert protocol.title == title


@pytest.mark.parametrize("levels", [1, 4, 1000])
def test_coco_1k_is_the_mean_of_five_consecutive_folds(levels):
    scores = matrix(levels)
    folds = [
        whole(scores, pictures, [t for t in KEPT if OWNER[t] in pictures])
        for pictures in ([0, 1], [2, 3], [4, 5], [6, 7], [8, 9])
    ]
    got, protocol = measured("coco-1k", scores)
    assert got == pytest.approx({name: np.mean([f[name] for f in folds]) for name in folds[0]})
    assert protocol.title == "COCO, folds of 2 (mean of 5 folds)"
    real = PROTOCOLS["coco-1k"](Corpus("coco", 5000, np.arange(25_000) // 5), Sources())
    assert real.title == "COCO 1K (mean of 5 folds)"
    assert [len(task.judgement) for task in real.tasks] == [1000, 5000] * 5
    with pytest.raises(ValueError, match="5 divides"):
        measured("coco-1k", np.zeros((3, 3)), data=Corpus("three", 3, np.arange(3)))


def test_own_data_is_judged_by_all_that_fits():
    scores = matrix()
    fits = np.random.default_rng(1).random(scores.shape) < 0.1
    fits[3] = fits[:, 8] = False  # queries without a fitting item are not asked
    got, protocol = measured("own", scores, data=replace(DATA, relevance=fits))
    captions = list(range(DATA.captions))
    asked = {
        "i2t": [(scores[i], captions, set(np.flatnonzero(fits[i]))) for i in IMAGES],
        "t2i": [(scores[:, t], IMAGES, set(np.flatnonzero(fits[:, t]))) for t in captions],
    }
    for way, queries in asked.items():
        judged = [query for query in queries if query[2]]
        assert got[f"{way}_r5"] == pytest.approx(mean(recall(*query, 5) for query in judged))
        assert got[f"{way}_map_at_r"] == pytest.approx(mean(map_at_r(*q) for q in judged))
        assert got[f"{way}_r_precision"] == pytest.approx(mean(r_precision(*q) for q in judged))
    assert [len(task.judgement) for task in protocol.tasks] == [9, fits.any(0).sum()]
    sources, _ = measured("own", scores)
    assert sources["i2t_r1"] == pytest.approx(
        mean(recall(scores[i], captions, set(np.flatnonzero(i == OWNER)), 1) for i in IMAGES)
    )


def test_cxc_retrieval_in_four_ways(tmp_path):
    rows = write_cxc(tmp_path, DATA)
    images, texts = sets(10, 0), sets(52, 1)
    sides = {"i2t": (images, texts), "i2i": (images, images), "t2t": (texts, texts)}
    protocol = PROTOCOLS["cxc"](DATA, Sources(cxc=tmp_path))
    made = {name: SetScores(*pair, impl="reference") for name, pair in sides.items()}
    (found,) = answer([protocol], made, block=7)
    scores = {name: score(*pair, impl="reference").numpy() for name, pair in sides.items()}

    fits = {name: {} for name in ("i2t", "t2i", "i2i", "t2t")}
    for t, i, rating in rows["sits"]:
        if rating >= 3 and t in KEPT:
            fits["i2t"].setdefault(i, set()).add(t)
            fits["t2i"].setdefault(t, set()).add(i)
    for a, b, rating in rows["sis"]:
        if rating >= 2.5:
            fits["i2i"].setdefault(a, set()).add(b)
            fits["i2i"].setdefault(b, set()).add(a)
    for t in KEPT:
        fits["t2t"][t] = {u for u in KEPT if OWNER[u] == OWNER[t] and u != t}
    for a, b, rating in rows["sts"]:
        if rating >= 3 and a in KEPT and b in KEPT:
            fits["t2t"][a].add(b)
            fits["t2t"][b].add(a)
    assert any(r == 3.0 for *_, r in rows["sits"]), "a rating on the edge counts"
    assert len(fits["i2i"]) < 10, "some pictures have no positive"
    gallery = {"i2t": KEPT, "t2i": IMAGES, "i2i": IMAGES, "t2t": KEPT}
    for way, queries in fits.items():
        table = scores["i2t"].T if way == "t2i" else scores[way]
        for k in (1, 5, 10):
            expected = mean(
                recall(table[q], [g for g in gallery[way] if way[0] != way[2] or g != q], some, k)
                for q, some in queries.items()
            )
            assert found.figures[f"{way}_r{k}"].value == pytest.approx(expected)
    assert set(found.correlations) == {"sits", "sis", "sts"}
    assert not protocol.notes


def test_cxc_says_what_it_left_out(tmp_path):
    write_cxc(tmp_path, DATA)
    (tmp_path / "sts_test.csv").unlink()
    smaller = replace(
        DATA,
        image_of_caption=OWNER[:40],
        caption_ids=DATA.caption_ids[:40],
    )
    protocol = PROTOCOLS["cxc"](smaller, Sources(cxc=tmp_path))
    assert len(protocol.notes) == 2 and "left out" in protocol.notes[0] + protocol.notes[1]
    assert {task.way for task in protocol.tasks} == {"i2t", "t2i", "i2i"}
    only = protocol.without({"i2i", "t2t"})
    assert {task.way for task in only.tasks} == {"i2t", "t2i"} and set(only.rated) == {"sits"}
    assert "i2i, t2t is left out" in only.notes[-1]
    with pytest.raises(FileNotFoundError, match="sits_val.csv"):
        PROTOCOLS["cxc"](DATA, Sources(cxc=tmp_path, split="val"))
    with pytest.raises(ValueError, match="ids, and those of tiny are not known"):
        PROTOCOLS["cxc"](replace(DATA, caption_ids=None), Sources(cxc=tmp_path))
    with pytest.raises(ValueError, match="same split of COCO"):
        PROTOCOLS["cxc"](replace(DATA, image_ids=np.arange(10) + 10_000), Sources(cxc=tmp_path))
    write_csv(tmp_path / "sits_test.csv", [(caption_name(DATA, 0), image_name(DATA, 0), "five")])
    with pytest.raises(ValueError, match=r"sits_test.csv, line 2: got .*five"):
        PROTOCOLS["cxc"](DATA, Sources(cxc=tmp_path))


def test_eccv_caption_by_the_definition(tmp_path):
    i2t, t2i = write_pairs(tmp_path, DATA, "eccv")
    scores = matrix()
    got, protocol = measured("eccv", scores, Sources(eccv=tmp_path))
    expected = {}
    for way, truth, rows, gallery in (
        ("i2t", i2t, scores, KEPT),
        ("t2i", t2i, scores.T, IMAGES),
    ):
        asked = [(rows[q], gallery, set(fits)) for q, fits in truth.items()]
        expected[f"{way}_map_at_r"] = mean(map_at_r(*q) for q in asked)
        expected[f"{way}_r_precision"] = mean(r_precision(*q) for q in asked)
        expected[f"{way}_r1"] = mean(recall(*q, 1) for q in asked)
    assert got == pytest.approx(expected)
    assert [len(task.judgement) for task in protocol.tasks] == [len(i2t), len(t2i)]


def test_a_caption_that_cannot_be_found_counts_in_r(tmp_path):
    """As the sixth captions of pictures do that ECCV Caption names."""
    i2t, _ = write_pairs(tmp_path, DATA, "eccv")
    scores, sixth = matrix(1000), next(t for t in range(52) if t not in KEPT)
    file = tmp_path / "eccv_image_to_caption.json"
    content = json.loads(file.read_text())
    content[str(DATA.image_ids[2])].append(int(DATA.caption_ids[sixth]))
    file.write_text(json.dumps(content))
    got, _ = measured("eccv", scores, Sources(eccv=tmp_path))
    values = []
    for query, fits in i2t.items():
        total = len(fits) + (query == 2)
        order = ranking(scores[query], KEPT, set(fits))[:total]
        values.append(len(set(order) & set(fits)) / total)
    assert got["i2t_r_precision"] == pytest.approx(mean(values))


def test_eccv_caption_needs_every_id(tmp_path):
    write_pairs(tmp_path, DATA, "eccv")
    for ids in (np.arange(52), np.where(np.arange(52) == 0, 7, DATA.caption_ids)):
        with pytest.raises(ValueError, match="caption ids are not in tiny"):
            measured("eccv", matrix(), Sources(eccv=tmp_path), replace(DATA, caption_ids=ids))
    file = tmp_path / "eccv_image_to_caption.json"
    file.write_text("[1, 2]")
    with pytest.raises(ValueError, match="expected JSON"):
        measured("eccv", matrix(), Sources(eccv=tmp_path))
    file.unlink()
    with pytest.raises(FileNotFoundError, match="eccv_image_to_caption.json"):
        measured("eccv", matrix(), Sources(eccv=tmp_path))


def plausible(labels, scores, pictures):
    """PMRP of some pictures, both ways, by PCME's definition."""
    pictures = [i for i in pictures if labels[i].any()]
    captions = [t for t in KEPT if OWNER[t] in pictures]
    found = {}
    for way, queries, gallery in (("i2t", pictures, captions), ("t2i", captions, pictures)):
        rows = scores if way == "i2t" else scores.T
        values = []
        for zeta in (0, 1, 2):
            for q in queries:
                own = labels[q if way == "i2t" else OWNER[q]]
                far = {g: (labels[OWNER[g] if way == "i2t" else g] != own).sum() for g in gallery}
                near = {g for g, distance in far.items() if distance <= zeta}
                values.append(r_precision(rows[q], gallery, near))
        found[f"{way}_r_precision"] = mean(values)
    return found


def test_pmrp_by_the_definition(tmp_path):
    labels = write_instances(tmp_path / "instances.json", DATA)
    np.save(tmp_path / "labels.npy", labels.astype(np.uint8))
    scores = matrix(50)
    for file in ("instances.json", "labels.npy"):
        sources = Sources(plausible=tmp_path / file)
        got, protocol = measured("pmrp", scores, sources)
        assert got == pytest.approx(plausible(labels, scores, IMAGES))
        assert 4 not in protocol.tasks[0].judgement.queries, "a picture without a class"
        folds = [plausible(labels, scores, [i, i + 1]) for i in range(0, 10, 2)]
        got, _ = measured("pmrp-1k", scores, sources)
        assert got == pytest.approx({name: np.mean([f[name] for f in folds]) for name in folds[0]})


def test_pmrp_of_listed_pairs_and_wrong_files(tmp_path):
    i2t, t2i = write_pairs(tmp_path, DATA, "pm")
    scores = matrix()
    got, _ = measured("pmrp", scores, Sources(plausible=tmp_path))
    assert got == pytest.approx(
        {
            "i2t_r_precision": mean(r_precision(scores[q], KEPT, set(f)) for q, f in i2t.items()),
            "t2i_r_precision": mean(
                r_precision(scores[:, q], IMAGES, set(f)) for q, f in t2i.items()
            ),
        }
    )
    np.save(tmp_path / "wrong.npy", np.full((10, 3), 2))
    np.save(tmp_path / "none.npy", np.zeros((10, 3)))
    (tmp_path / "wrong.json").write_text(json.dumps({"images": []}))
    other = {"annotations": [{"image_id": 5_000_000, "category_id": 1}]}
    (tmp_path / "other.json").write_text(json.dumps(other))
    for name, path, words in (
        ("pmrp", None, "needs its ground truth"),
        ("pmrp-1k", tmp_path, "folds need class labels"),
        ("pmrp", tmp_path / "wrong.npy", "expected 0 and 1"),
        ("pmrp", tmp_path / "none.npy", "no picture has a class"),
        ("pmrp", tmp_path / "wrong.json", "expected COCO's instances"),
        ("pmrp", tmp_path / "other.json", "none of its annotations"),
        ("pmrp", tmp_path / "absent.json", "no such file"),
    ):
        with pytest.raises((ValueError, FileNotFoundError), match=words):
            measured(name, scores, Sources(plausible=path))


def peer():
    """The Metrics of eccv-caption; it warns where ujson is not installed."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        from eccv_caption import Metrics
    return Metrics()


@needs_package
def test_equals_eccv_caption_on_a_tiny_coco(tmp_path):
    """All its figures but those that need more than 50 captions, with its code, on our truth."""
    data = corpus(extra=False)
    ids = data.image_ids.tolist(), data.caption_ids.tolist()
    metrics, sources = peer(), {}
    for prefix, seed in (("eccv", 5), ("cxc", 6), ("pm", 7)):
        write_pairs(tmp_path / prefix, data, prefix, seed)
        sources[prefix] = [tmp_path / prefix / f"{prefix}_{way}.json" for way in WAYS]
    metrics.set_eccv_gts(*sources["eccv"])
    metrics.set_pm_gts(*sources["pm"])
    metrics.coco_ids = data.caption_ids
    owner = {t: [ids[0][i]] for t, i in zip(ids[1], data.image_of_caption, strict=True)}
    own = {i: [t for t, (o,) in owner.items() if o == i] for i in ids[0]}
    metrics.coco_gts = {"i2t": own, "t2i": owner}
    scores = np.random.default_rng(8).permutation(500).reshape(10, 50) / 500
    i2t = {i: [ids[1][t] for t in np.argsort(-scores[n])] for n, i in enumerate(ids[0])}
    t2i = {t: [ids[0][i] for i in np.argsort(-scores[:, n])] for n, t in enumerate(ids[1])}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        theirs = metrics.compute_all_metrics(
            i2t,
            t2i,
            target_metrics=(
                *("eccv_r1", "eccv_map_at_r", "eccv_rprecision"),
                *("coco_1k_recalls", "coco_5k_recalls"),
            ),
        )
        theirs["pmrp"] = metrics.pmrp({"i2t": i2t, "t2i": t2i}, "all")
    truth = Sources(eccv=tmp_path / "eccv", plausible=tmp_path / "pm")
    for protocol, names in (
        ("eccv", {"r1": "eccv_r1", "map_at_r": "eccv_map_at_r", "r_precision": "eccv_rprecision"}),
        ("coco-1k", {f"r{k}": f"coco_1k_r{k}" for k in (1, 5, 10)}),
        ("coco-5k", {f"r{k}": f"coco_5k_r{k}" for k in (1, 5, 10)}),
        ("pmrp", {"r_precision": "pmrp"}),
    ):
        got, _ = measured(protocol, scores, truth, data)
        for ours, name in names.items():
            for way in ("i2t", "t2i"):
                assert got[f"{way}_{ours}"] == pytest.approx(100 * theirs[name][way], abs=1e-9)


@needs_package
def test_equals_eccv_caption_on_its_own_ground_truth(tmp_path):
    """A part of it: 80 queries a way, among the pictures that they name; bench_eval.py takes all.

    Two of the pictures have a fitting caption that is not among the 25,000.
    """
    i2t, t2i = (json.loads((package_folder() / f"eccv_{way}.json").read_text()) for way in WAYS)
    captions, images = coco_test_ids(), coco_test_images(coco_test_ids())
    i2t = {i: i2t[i] for i in ["575916", "421999", *list(i2t)[:78]]}
    t2i = {t: t2i[t] for t in list(t2i)[:80]}
    named = np.isin(captions, [int(t) for t in [*t2i, *sum(i2t.values(), [])]])
    pictures = np.isin(images, [int(i) for i in [*i2t, *sum(t2i.values(), [])]])
    pictures |= named.reshape(5000, 5).any(1)
    ids = images[pictures], captions[np.repeat(pictures, 5)]
    owner = np.arange(len(ids[1])) // 5
    data = Corpus("part", len(ids[0]), owner, image_ids=ids[0], caption_ids=ids[1])
    for way, truth in zip(WAYS, (i2t, t2i), strict=True):
        (tmp_path / f"eccv_{way}.json").write_text(json.dumps(truth))
    scores = np.random.default_rng(0).random((data.images, data.captions), dtype=np.float32)
    scores[owner, np.arange(len(owner))] += 0.5
    got, protocol = measured("eccv", scores, Sources(eccv=tmp_path), data)
    assert protocol.tasks[0].judgement.lost.sum() == 2
    places = [{int(name): n for n, name in enumerate(side)} for side in ids]
    lists = {
        "i2t": {int(i): best(scores[places[0][int(i)]], ids[1].tolist()) for i in i2t},
        "t2i": {int(t): best(scores[:, places[1][int(t)]], ids[0].tolist()) for t in t2i},
    }
    metrics = peer()
    metrics.set_eccv_gts(*(tmp_path / f"eccv_{w}.json" for w in WAYS))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        theirs = metrics.eccv_metrics(lists, "all")
    names = {"map_at_r": "eccv_map_at_r", "r_precision": "eccv_rprecision", "r1": "eccv_r1"}
    for way in ("i2t", "t2i"):
        for ours, name in names.items():
            figure = got[f"{way}_{ours}"]
            assert figure == pytest.approx(100 * theirs[name][way], abs=1e-9) and 1 < figure < 99


@needs_package
def test_cxc_without_its_files_takes_what_the_package_has():
    captions = coco_test_ids()
    images = coco_test_images(captions)
    data = Corpus("coco", 5000, np.arange(25_000) // 5, None, images, captions)
    cxc = PROTOCOLS["cxc"](data, Sources())
    assert [len(task.judgement) for task in cxc.tasks] == [5000, 24_972]
    assert "--cxc FOLDER" in cxc.notes[0]


def best(scores: np.ndarray, ids: list[int], count: int = 64) -> list[int]:
    top = np.argpartition(-scores, count)[:count]
    return [ids[item] for item in top[np.argsort(-scores[top])]]


def test_ties_lose_a_place():
    """A picture's caption that scores like a wrong one is not found first."""
    data = Corpus("pair", 2, np.array([0, 1]))
    scores = np.array([[0.5, 0.5], [0.1, 0.9]])
    got, _ = measured("own", scores, data=data)
    assert got["i2t_r1"] == 50.0 and got["i2t_map_at_r"] == 50.0
    assert ranking(scores[0], [0, 1], {0}) == [1, 0]


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"image_of_caption": np.array([0.5])}, "one integer a caption"),
        ({"image_of_caption": OWNER + 1}, "must lie in 0..9"),
        ({"relevance": np.zeros((10, 52))}, "must be bool"),
        ({"relevance": np.zeros((10, 52), bool)}, "no pair at all"),
        ({"image_ids": np.zeros(10, np.int64)}, "10 different ids"),
        ({"caption_ids": np.arange(51)}, "52 different ids"),
    ],
)
def test_a_wrong_corpus_says_what_is_wrong(changes, words):
    with pytest.raises(ValueError, match=words):
        replace(DATA, **changes)
