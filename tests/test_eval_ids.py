"""divse-eval: owners and COCO's ids, of files, of a Karpathy JSON, or of the usual order."""

import json
from importlib.util import find_spec

import numpy as np
import pytest
from eval_cases import figures

from divse.cli.eval_data import DataOptions, with_ids
from divse.data import ImageTextData
from divse.evaluation.corpus import Corpus


def karpathy(folder, extra):
    """A split file of three test pictures; the second has `extra` captions more than five."""
    images = []
    for number, count in ((40, 5), (7, 5 + extra), (23, 5)):
        sentences = [{"raw": f"caption {n}", "sentid": 100 * number + n} for n in range(count)]
        images.append(
            {
                "cocoid": number,
                "filename": f"COCO_val2014_{number:012d}.jpg",
                "filepath": "val2014",
                "split": "test",
                "sentids": [s["sentid"] for s in sentences],
                "sentences": sentences,
            }
        )
    file = folder / "dataset_coco.json"
    file.write_text(json.dumps({"images": images}))
    return file


def test_ids_come_from_the_split_file_beside_the_data(tmp_path):
    karpathy(tmp_path, extra=1)
    corpus = Corpus("three", 3, np.repeat([0, 1, 2], [5, 6, 5]))
    found = with_ids(corpus, DataOptions(path=tmp_path), None)
    assert found.image_ids.tolist() == [40, 7, 23]
    assert found.caption_ids.tolist()[5:11] == [700, 701, 702, 703, 704, 705]
    (tmp_path / "ids.txt").write_text("5\n6\n9")
    given = DataOptions(path=tmp_path, image_ids=tmp_path / "ids.txt")
    assert with_ids(corpus, given, None).image_ids.tolist() == [5, 6, 9]


@pytest.mark.skipif(find_spec("eccv_caption") is None, reason="eccv-caption is not installed")
def test_cocos_test_split_is_known_by_its_order():
    corpus = Corpus("coco", 5000, np.arange(25_000) // 5)
    found = with_ids(corpus, DataOptions(), None)
    assert found.image_ids[0] == 391_895 and found.caption_ids[0] == 770_337
    names = [str(number) for number in found.image_ids]
    data = ImageTextData.gather("coco", "test", names, [["a"] * 5] * 5000)
    assert with_ids(corpus, DataOptions(), data).caption_ids[-1] == found.caption_ids[-1]
    data = ImageTextData.gather("coco", "test", names[::-1], [["a"] * 5] * 5000)
    with pytest.raises(ValueError, match="usual order"):
        with_ids(corpus, DataOptions(), data)


@pytest.mark.parametrize("captions", [15, 17])
def test_a_karpathy_file_gives_owners_and_ids(call, tmp_path, captions):
    """All captions were embedded, or the first five of each picture."""
    file = karpathy(tmp_path, extra=2)
    sizes = [5, captions - 10, 5]
    owner = np.repeat([0, 1, 2], sizes)
    scores = (np.arange(3)[:, None] == owner) + 0.01 * np.arange(captions)
    np.save(tmp_path / "scores.npy", scores)
    truth = tmp_path / "truth"
    truth.mkdir()
    (truth / "eccv_image_to_caption.json").write_text(json.dumps({"7": [700, 701, 2304]}))
    (truth / "eccv_caption_to_image.json").write_text(json.dumps({"4003": [40], "2300": [7]}))
    words = ("--scores", tmp_path / "scores.npy", "--karpathy", file, "-p", "eccv")
    code, out, _ = call(*words, "--eccv", truth, "--json")
    assert code == 0
    got = figures(out, protocol="eccv")
    # the first three of picture 7 are its own captions, later ones first: 4, 3, 2
    assert got["i2t_r_precision"] == 0.0
    assert got["t2i_r1"] == 50.0
    np.save(tmp_path / "scores.npy", scores[:, :-1])
    code, _, err = call(*words, "--eccv", truth)
    assert code == 1 and "captions in test" in err
