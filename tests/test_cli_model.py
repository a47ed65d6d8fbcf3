"""divse-search with a model: pictures and texts in the place of embeddings."""

import torch
from cli_cases import json_lines
from PIL import Image

from divse.search.gallery import Gallery


def test_pictures_to_contact_sheet(model, pictures, tmp_path, cli):
    code, _, err = cli("build", tmp_path / "g", "--model", model, "--images", pictures)
    assert code == 0, err
    gallery = Gallery.open(tmp_path / "g")
    assert gallery.ids.tolist() == ["a.png", "b.jpg", "more/c.png"]
    assert gallery.metadata["model"]["similarity"]["alpha"] == 8.0
    sheet = tmp_path / "found.png"
    texts = ("--text", "a red circle", "--text", "two blue stars")
    code, out, err = cli(
        "query", tmp_path / "g", *texts, "--topk", 2, "--contact-sheet", sheet, "--json"
    )
    assert code == 0, err
    assert [a["query"] for a in json_lines(out)] == [
        {"text": "a red circle"},
        {"text": "two blue stars"},
    ]
    with Image.open(sheet) as drawn:
        assert drawn.width > 500 and drawn.height > 400
    picture = pictures / "more" / "c.png"
    code, out, err = cli("query", tmp_path / "g", "--image", picture, "--topk", 1)
    assert code == 0 and "more/c.png" in out, err


def test_texts_as_a_gallery(model, pictures, tmp_path, cli):
    (tmp_path / "lines.txt").write_text("a red circle\ntwo blue stars\n")
    code, _, err = cli("build", tmp_path / "g", "--model", model, "--texts", tmp_path / "lines.txt")
    assert code == 0, err
    query = ("query", tmp_path / "g", "--topk", 1, "--json")
    hit = json_lines(cli(*query, "--text", "two blue stars")[1])[0]["hits"][0]
    assert (hit["id"], hit["text"]) == (1, "two blue stars")
    sheet = ("--contact-sheet", tmp_path / "s.png")
    assert cli(*query, "--image", pictures / "a.png", *sheet)[0] == 0
    (tmp_path / "lines.txt").write_text("one\n\n")
    code, _, err = cli("build", tmp_path / "n", "--model", model, "--texts", tmp_path / "lines.txt")
    assert code == 1 and "lines.txt: text 2 is empty" in err


def test_model_that_does_not_fit_is_refused(model, pictures, tmp_path, cli):
    from divse.encoder import DivSE

    cli("build", tmp_path / "g", "--model", model, "--images", pictures)
    other = DivSE.from_pretrained(model)
    with torch.no_grad():
        next(other.model.parameters()).add_(1)
    other.save_pretrained(tmp_path / "other")
    query = ("query", tmp_path / "g", "--text", "a red circle", "--topk", 1)
    code, out, err = cli(*query, "--model", tmp_path / "other")
    assert (code, out) == (1, "") and "does not fit" in err and "fingerprint" in err
    assert cli(*query, "--model", model)[0] == 0


def test_columns_of_pictures_are_matched_by_their_names(model, pictures, tmp_path, cli):
    table = tmp_path / "about.csv"
    table.write_text("id,year\nmore/c.png,3\na.png,1\nb.jpg,2\n")
    build = ("build", tmp_path / "g", "--model", model, "--images", pictures, "--columns", table)
    assert cli(*build)[0] == 0
    rows = Gallery.open(tmp_path / "g").rows.to_pylist()
    assert {row["id"]: row["year"] for row in rows} == {"a.png": 1, "b.jpg": 2, "more/c.png": 3}
    assert {"id", "path", "year"} == rows[0].keys()
