"""Figures of tables of runs: every number that is drawn is one of the table's."""

import csv
import json

import numpy as np
import pytest
from plot_cases import CONFIGS, NOISE, assert_legible, row, words

from divse.cli.plot_app import main
from divse.evaluation.seeds import compare
from divse.plots.ablation import ABOVE, BELOW, OPEN, ablation_page, lines_of
from divse.plots.supervision import Shares, effective_elements, shares_of, supervision_page
from divse.plots.table import (
    by_group,
    configurations,
    find_reference,
    group_of,
    label_in,
    read_runs,
)
from divse.plots.variance import variance_page


@pytest.fixture
def rows():
    return [row(config, seed) for seed in range(3) for config in CONFIGS]


@pytest.fixture
def table(tmp_path, rows):
    columns = list(dict.fromkeys(name for one in rows for name in one))
    with (tmp_path / "ablation.csv").open("w", newline="") as file:
        writer = csv.DictWriter(file, columns)
        writer.writeheader()
        writer.writerows(rows)
    return tmp_path / "ablation.csv"


def test_groups_and_names_come_from_what_is_varied(rows):
    some = configurations(rows, "rsum")
    base = find_reference(some)
    assert base.name == "smooth_chamfer"
    groups = by_group(some, base)
    names = {group: [label_in(one, group) for one in ones] for group, ones in groups.items()}
    assert names["k"] == ["K = 1, pooled", "K = 2", "K = 4"]
    assert names["alpha"] == ["α = 8", "α = 16", "α = 64"]
    assert set(names["similarity"]) == {"MIL", "Smooth-Chamfer"}
    assert set(names["head"]) == {"PIE-Net", "set prediction"}
    assert group_of(some[3], base) == "k"  # its head is another, but K is what it is about


def test_a_column_group_decides(rows):
    for one in rows:
        one["group"] = "mine"
    some = configurations(rows, "rsum")
    assert list(by_group(some, find_reference(some))) == ["mine"]


def test_bars_are_paired_differences(rows):
    lines = lines_of(configurations(rows, "rsum"), "rsum")
    mil = next(item for item in lines["similarity"] if item.name == "MIL")
    assert mil.differences == pytest.approx([-20 + 3 * noise for noise in NOISE])
    figures = {name: {} for name in CONFIGS}
    for one in rows:
        figures[one["config"]][one["seed"]] = float(one["rsum"])
    assert mil.comparison == compare(figures, "smooth_chamfer")["mil"]
    assert mil.interval.estimate == pytest.approx(-20 + 3 * np.mean(NOISE)) and mil.hue == BELOW
    hues = {item.name: item.hue for item in lines["alpha"]}
    assert hues == {"α = 8": ABOVE, "α = 16": OPEN, "α = 64": OPEN}
    assert next(item for item in lines["k"] if item.reference).interval is None


def test_a_bar_is_coloured_only_if_it_stands_the_correction():
    """A difference that is clear by itself is not among twenty others of the same size."""
    rng = np.random.default_rng(0)
    names = ["smooth_chamfer", *(f"other{i}" for i in range(20))]
    rows = [
        {"config": name, "seed": seed, "rsum": 100 + 2.2 * (name == "other0") + rng.normal()}
        for name in names
        for seed in range(3)
    ]
    some = configurations(rows, "rsum")
    (first,) = (one for one in lines_of(some, "rsum")["other"] if one.name == "other0")
    assert first.interval.excludes_zero and first.hue == OPEN
    (alone,) = (one for one in lines_of(some[:2], "rsum")["other"] if one.name == "other0")
    assert alone.comparison.p < first.comparison.p


def test_runs_that_were_trained_otherwise_are_a_panel_of_their_own(rows):
    """A check with another loss is compared with the reference of that loss."""
    usual = [one | {"loss": "info_nce", "epochs": "20"} for one in rows]
    checks = [
        row(config, 0) | {"config": f"{config}_{name}", **training}
        for config in ("smooth_chamfer", "mil")
        for name, training in (
            ("triplet", {"loss": "triplet", "epochs": "20"}),
            ("2x", {"loss": "info_nce", "epochs": "40"}),
        )
    ]
    some = configurations(usual + checks, "rsum")
    panels = {one.data: one for one in some}
    assert list(panels) == ["scenes", "scenes (loss: triplet)", "scenes (40 epochs)"]
    triplet = [one for one in some if one.data == "scenes (loss: triplet)"]
    lines = lines_of(triplet, "rsum")["similarity"]
    assert [(one.name, one.differences) for one in lines] == [
        ("Smooth-Chamfer", []),
        ("MIL", [-20.0]),
    ]
    assert {o.name for o in configurations(usual + checks, "rsum", ["scenes"])} == set(CONFIGS)
    with pytest.raises(ValueError, match=r"expected one of scenes, scenes \(loss: triplet\)"):
        configurations(usual + checks, "rsum", ["photos"])
    step = row("pie_net", 0) | {"config": "step", "loss": "info_nce", "epochs": "20"}
    marked = configurations([*usual, step | {"check": "reading"}], "rsum")
    assert [one.data for one in marked if one.name == "step"] == ["scenes (check: reading)"]
    with_step = [*usual, step | {"check": "reading"}]
    assert len(ablation_page(with_step).figure.axes) == 1, "alone, it is compared with nothing"
    assert len(ablation_page(with_step, data=["scenes (check: reading)"]).figure.axes) == 1
    page = variance_page(usual + checks, data=["scenes"])
    assert "triplet" not in " ".join(words(page)) and len(page.figure.axes) == 1
    assert len(ablation_page(usual + checks).figure.axes) == 3


@pytest.mark.parametrize("figure", ["ablation", "variance"])
def test_the_command_takes_some_of_the_data(figure, tmp_path, table, capsys, monkeypatch):
    monkeypatch.setattr("divse.plots.page.DPI", 40)
    told = []
    for data, code in (("scenes", 0), ("photos", 1)):
        with pytest.raises(SystemExit) as stopped:
            main([figure, str(table), "--data", data, "--out", str(tmp_path / f"{data}.png")])
        assert stopped.value.code == code
        told.append(capsys.readouterr().err)
    assert told[0] == "" and "got 'photos', expected one of scenes" in told[1]
    assert (tmp_path / "scenes.png").exists() and not (tmp_path / "photos.png").exists()


def test_the_ablation_shows_every_configuration(rows):
    page = ablation_page([*rows, *(one | {"data": "photos"} for one in rows)])
    said = words(page)
    for name in (
        "scenes",
        "photos",
        "MIL",
        "PIE-Net",
        "K = 1, pooled",
        "α = 64",
        "difference in RSUM",
    ):
        assert name in said, name
    axes = page.figure.axes[0]
    widths = sorted(bar.get_width() for bar in axes.patches)
    assert widths[0] == pytest.approx(-30.0, abs=1) and widths[-1] == pytest.approx(20, abs=2)
    assert len(axes.patches) == len(CONFIGS) - 1 and len(page.figure.axes) == 2
    assert_legible(page)


def test_one_seed_has_no_interval(rows):
    page = ablation_page([one for one in rows if one["seed"] == "0"])
    assert "−20.0 (one seed)" in words(page)
    lines = lines_of(configurations(rows[: len(CONFIGS)], "rsum"), "rsum")
    assert {item.hue for ones in lines.values() for item in ones} == {OPEN}


def test_seeds_that_the_reference_lacks_are_not_compared(rows):
    kept = [one for one in rows if one["config"] == "mil" or one["seed"] == "9"]
    kept += [row("smooth_chamfer", 0) | {"seed": "7"}]
    lines = lines_of(configurations(kept, "rsum"), "rsum")
    assert all(not item.differences for item in lines["similarity"])
    assert "no seed in common" in words(ablation_page(kept))


def test_variance_draws_every_run_and_mean(rows):
    page = variance_page(rows)
    axes = page.figure.axes[0]
    drawn = np.concatenate([c.get_offsets() for c in axes.collections if len(c.get_offsets()) == 3])
    expected = [
        (float(one["log_var_images"]), float(one["rsum"])) for one in rows if one["log_var_images"]
    ]
    np.testing.assert_allclose(sorted(map(tuple, drawn)), sorted(expected))
    said = words(page)
    assert {"MIL", "PIE-Net", "K = 2", "α = 8", "reference"} <= set(said)
    assert "not shown: K = 1, pooled." in " ".join(said) and "log Var of the pictures' sets" in said
    assert_legible(page)


def test_shares_of_a_table(rows):
    shares = {one.name: one for one in shares_of(rows)}
    assert list(shares) == ["MIL", "Smooth-Chamfer"]  # from sparse to dense
    np.testing.assert_allclose(shares["MIL"].images, [[0.7, 0.2, 0.06, 0.04]] * 3)
    with pytest.raises(ValueError, match="expected one of scenes"):
        shares_of(rows, data="photos")
    with pytest.raises(ValueError, match="expected one of scenes, photos"):
        shares_of([*rows, *(one | {"data": "photos"} for one in rows)])


def test_supervision_bars_add_up():
    page = supervision_page(
        [
            Shares("MIL", np.array([[0.9, 0.1]]), np.array([[1.0, 0.0]])),
            Shares("MP", np.array([[0.5, 0.5]]), np.array([[0.6, 0.4]])),
        ],
        "Somewhere.",
    )
    widths = [bar.get_width() for bar in page.figure.axes[0].patches]
    assert widths == pytest.approx([90, 10, 50, 50])
    said = words(page)
    assert "2.0 of 2" in said and "1.0 of 2" in said and "90" in said
    assert_legible(page)


def test_effective_elements():
    assert effective_elements(np.full(4, 0.25)) == pytest.approx(4)
    assert effective_elements(np.array([1.0, 0, 0])) == pytest.approx(1)


def test_sets_of_different_sizes_do_not_mix():
    shares = [Shares("a", np.ones((1, 2)) / 2, np.ones((1, 2)) / 2)]
    shares.append(Shares("b", np.ones((1, 3)) / 3, np.ones((1, 3)) / 3))
    with pytest.raises(ValueError, match="different sizes"):
        supervision_page(shares, "")


def test_csv_and_run_folders(tmp_path, table):
    assert len(read_runs([table])) == 3 * len(CONFIGS)
    settings = {"loss": {"similarity": "mil"}, "model": {"k": 2}}
    for seed in (0, 1):
        settings["train"] = {"seed": seed}
        folder = tmp_path / "runs" / f"mine-{seed}"
        folder.mkdir(parents=True)
        (folder / "settings.json").write_text(json.dumps(settings))
        (folder / "test.json").write_text(json.dumps({"rsum": 300.0 + seed}))
    runs = read_runs([tmp_path / "runs"])
    assert [run["rsum"] for run in runs] == [300, 301]
    assert {(run["config"], run["similarity"], run["k"], run["alpha"]) for run in runs} == {
        ("mine", "mil", 2, None)
    }
    assert read_runs([tmp_path / "runs" / "mine-1"]) == runs[1:]


def test_seed_zero_is_a_seed_wherever_it_stands():
    rows = [{"config": "a", "seed": seed, "rsum": 10 + seed} for seed in (1, 0)]
    assert configurations(rows, "rsum")[0].seeds("rsum") == {"1": 11, "0": 10}
    rows = [{"config": "a", "seed": "", "rsum": 3}, {"config": "a", "rsum": 4}]
    assert configurations(rows, "rsum")[0].seeds("rsum") == {"0": 3, "1": 4}


def test_runs_on_different_worlds_are_different_data(tmp_path):
    for name, options in (("a", {"pictures": 60}), ("b", {"pictures": 60, "seed": 1})):
        (tmp_path / name).mkdir()
        settings = {"data": {"name": "scenes", "options": options}}
        (tmp_path / name / "settings.json").write_text(json.dumps(settings))
        (tmp_path / name / "test.json").write_text(json.dumps({"rsum": 300.0}))
    named = [run["data"] for run in read_runs([tmp_path])]
    assert named == ["scenes-v1+pictures=60", "scenes-v1+pictures=60+seed=1"]


def test_tables_that_cannot_serve(tmp_path, rows, table):
    (tmp_path / "other.csv").write_text("a,b\n1,2\n")
    (tmp_path / "empty.csv").write_text("config\n")
    with pytest.raises(ValueError, match="expected a column config"):
        read_runs([tmp_path / "other.csv"])
    with pytest.raises(ValueError, match="no runs"):
        read_runs([tmp_path / "empty.csv"])
    with pytest.raises(FileNotFoundError, match=r"test\.json"):
        read_runs([tmp_path])
    with pytest.raises(ValueError, match="no run has a number foo"):
        ablation_page(rows, "foo")
    with pytest.raises(ValueError, match="expected one of smooth_chamfer"):
        ablation_page(rows, reference="foo")
    with pytest.raises(ValueError, match="expected a number"):
        ablation_page([rows[0] | {"rsum": "many"}])
    with pytest.raises(ValueError, match="images or texts"):
        variance_page(rows, side="both")
