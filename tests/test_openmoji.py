"""bench/openmoji.py on a small release made here, and on the real one where it is named."""

import json
import os
import sys
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
from PIL import Image

from divse.data import captions

SKIN = "1F44D-1F3FB"


def entry(name, annotation, tags="", own="", group="smileys-emotion", skintone=""):
    return {
        **{"hexcode": name, "annotation": annotation, "tags": tags, "openmoji_tags": own},
        **{"group": group, "skintone": skintone},
    }


ENTRIES = [
    entry(
        *("1F604", "grinning face with smiling eyes"),
        "eye, eyes, face, grin, grinning, happy, laugh, lol, mouth, open, smile, smiling",
        "happy, teeth",
    ),
    entry("1F601", "skull", "body, Skull, dead", " dead ,, bones"),
    entry("1F600", "many", ", ".join(f"w{i}" for i in range(17))),
    entry("2B24", "black large circle", group="extras-unicode"),
    entry("1F1E9-1F1EA", "flag: Germany", group="flags"),
    entry("1F3FB", "light skin tone", group="component"),
    entry(SKIN, "thumbs up: light skin tone", group="people-body", skintone="1"),
]
NAMES = ["1F604", "1F601", "1F600", "2B24"]


@pytest.fixture
def release(tmp_path):
    """A release as GitHub's archive holds it, with PNG files."""
    folder = tmp_path / "release"
    (folder / "data").mkdir(parents=True)
    (folder / "color" / "618x618").mkdir(parents=True)
    (folder / "data" / "openmoji.json").write_text(json.dumps(ENTRIES))
    (folder / "LICENSE.txt").write_text("CC BY-SA 4.0")
    for i, item in enumerate(ENTRIES):
        picture = Image.new("RGBA", (618, 618), (0, 0, 0, 0))  # transparent black: white afterwards
        picture.paste((10 * i, 200, 30, 255), (0, 0, 309, 618))
        picture.save(folder / "color" / "618x618" / f"{item['hexcode']}.png")
    return folder


@pytest.fixture
def made(release, run, tmp_path):
    assert run("openmoji", release, "--out", tmp_path / "made", "--png")[0] == 0
    return tmp_path / "made"


def rows(folder):
    return [json.loads(line) for line in (folder / "captions.jsonl").read_text().splitlines()]


def test_flags_components_and_skin_tones_are_left_out(made):
    assert [row["id"] for row in rows(made)] == NAMES
    assert {path.stem for path in (made / "images").iterdir()} == set(NAMES)


def test_words_are_dealt_to_phrases(made):
    found = {row["id"]: row["captions"] for row in rows(made)}
    assert found["1F604"] == [
        "grinning face with smiling eyes",
        *("eye, grinning, mouth, teeth", "eyes, happy, open", "face, laugh, smile"),
        "grin, lol, smiling",
    ]
    assert found["1F601"] == ["skull", "body, dead, bones"]  # neither twice nor the annotation
    assert found["1F600"][1] == "w0, w5, w10, w15" and len(found["1F600"]) == 5
    assert found["2B24"] == ["black large circle"]


def test_the_split_is_a_hash_of_the_id(made, load):
    assert [row["split"] for row in rows(made)] == ["val", "test", "train", "train"]
    drawn = [load("openmoji").split_of(f"{i:X}") for i in range(2000)]
    assert 140 < drawn.count("test") < 260 and 140 < drawn.count("val") < 260


def test_pictures_stand_on_white(made):
    picture = np.asarray(Image.open(made / "images" / "1F604.png"))
    assert picture.shape == (128, 128, 3)
    assert (picture[:, :60] == (0, 200, 30)).all() and (picture[:, 70:] == 255).all()


def test_the_folder_is_read_as_any_other(made):
    data = captions.load("test", path=made)
    assert data.captions == ["skull", "body, dead, bones"] and data.image(0).shape == (128, 128, 3)


def test_comparison_names_every_difference(made, release, run, tmp_path, capsys):
    words = (release, "--out", tmp_path / "again", "--png", "--compare", made)
    status, text = run("openmoji", *words)
    assert status == 0 and "no difference" in text
    other = rows(made)
    other[0]["captions"][1] = "eye"
    (made / "captions.jsonl").write_text("".join(json.dumps(r) + "\n" for r in other[:3]))
    Image.new("RGB", (128, 128)).save(made / "images" / "1F600.png")
    status, text = run("openmoji", *words)
    assert status == 1
    for said in ("1F604: captions", "1F600: 16384 pixels differ", "2B24: only in"):
        assert said in text
    Image.new("RGB", (64, 64)).save(made / "images" / "1F601.png")
    assert "1F601: picture of shape" in run("openmoji", *words)[1]


def test_a_stopped_run_goes_on(made, release, run):
    kept = (made / "images" / "1F604.png").stat().st_mtime_ns
    (made / "images" / "1F601.png").unlink()
    assert run("openmoji", release, "--out", made, "--png")[0] == 0
    assert (made / "images" / "1F601.png").exists()
    assert (made / "images" / "1F604.png").stat().st_mtime_ns == kept


def test_an_incomplete_release_is_refused(release, run, tmp_path, capsys):
    (release / "color" / "618x618" / "2B24.png").unlink()
    with pytest.raises(SystemExit, match="lacks 1 of 4 pictures, e.g. 2B24.png"):
        run("openmoji", release, "--out", tmp_path / "made", "--png")
    assert not (tmp_path / "made").exists()
    with pytest.raises(SystemExit, match="neither data/openmoji.json"):
        run("openmoji", tmp_path, "--out", tmp_path / "made")
    (release / "package.json").write_text('{"version": "15.1.0"}')
    with pytest.raises(SystemExit, match="lacks 4 of 4"):
        run("openmoji", release, "--out", tmp_path / "made")
    assert "this is OpenMoji 15.1.0" in capsys.readouterr().err


def test_svg_files_are_drawn_on_white_at_the_final_size(release, run, tmp_path, monkeypatch):
    asked = {}

    def svg_to_bytes(**options):
        asked[Path(options.pop("svg_path")).name] = options
        return (release / "color" / "618x618" / "1F604.png").read_bytes()

    module = ModuleType("resvg_py")
    module.svg_to_bytes = svg_to_bytes
    monkeypatch.setitem(sys.modules, "resvg_py", module)
    (release / "color" / "svg").mkdir()
    for name in NAMES:
        (release / "color" / "svg" / f"{name}.svg").write_text("<svg/>")
    assert run("openmoji", release, "--out", tmp_path / "made")[0] == 0
    assert list(asked) == [f"{name}.svg" for name in NAMES]
    assert asked["2B24.svg"] == {
        **{"width": 128, "height": 128, "background": "#ffffff", "skip_system_fonts": True}
    }


REAL = ("DIVSE_OPENMOJI_RELEASE", "DIVSE_OPENMOJI")


@pytest.mark.skipif(not all(map(os.getenv, REAL)), reason=f"{' and '.join(REAL)} name no folders")
def test_the_real_release_gives_the_real_folder(run, tmp_path):
    pytest.importorskip("resvg_py")
    release, folder = map(os.getenv, REAL)
    status, text = run("openmoji", release, "--out", tmp_path / "made", "--compare", folder)
    assert status == 0, text[:2000]
