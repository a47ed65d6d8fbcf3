"""bench/ablation.py: its tables by hand, the CSV kept in order, and what is not trained again."""

import json
from types import SimpleNamespace

import pytest

from divse.evaluation.seeds import compare

RSUM = {
    "smooth_chamfer": (360.0, 382.0, 371.0),
    "chamfer": (361.0, 379.0, 374.0),
    "mil": (350.0, 373.0, 361.5),
    "k1": (340.0,),
}
CHECKS = {"smooth_chamfer_triplet": 300.0, "chamfer_triplet": 310.0, "pie_net_2x_epochs": 450.0}


@pytest.fixture
def bench(load):
    return load("ablation")


@pytest.fixture
def tables(load):
    return load("ablation_tables")


@pytest.fixture
def csv_rows(load):
    return load("ablation_rows")


@pytest.fixture
def table(csv_rows, tmp_path):
    """A CSV of runs that were added in no order."""
    path = tmp_path / "ablation.csv"
    for config, values in RSUM.items():
        for seed in reversed(range(len(values))):
            row = {"data": "scenes", "config": config, "seed": seed, "rsum": values[seed]}
            row |= {"loss": "info_nce", "epochs": 20}
            if config != "k1":
                row |= {"share_images_1": 0.4, "share_texts_1": 0.2, "log_var_images": -1 - seed}
            csv_rows.add_row(path, row)
    return path


@pytest.fixture
def runs(tables, csv_rows, table):
    return tables.by_config(csv_rows.read_rows(table), "scenes")


def test_rows_stand_by_configuration_and_seed(csv_rows, table):
    held = [(row["config"], int(row["seed"])) for row in csv_rows.read_rows(table)]
    assert held == [(config, seed) for config in RSUM for seed in range(len(RSUM[config]))]


def test_rows_of_another_version_are_kept(csv_rows, tables, table, capsys):
    """Its configurations stand last and are named; its columns stay."""
    for config, more in (("newer", {"speed": 3}), ("mp", {})):
        row = {"data": "scenes", "config": config, "seed": 0, "rsum": 1.0} | more
        csv_rows.add_row(table, row)
        assert "unknown configurations, kept: newer" in capsys.readouterr().err
    rows = csv_rows.read_rows(table)
    assert [row["config"] for row in rows][-3:] == ["mp", "k1", "newer"]
    assert rows[-1]["speed"] == "3" and rows[0]["speed"] == ""
    assert "Configurations in no table: newer." in tables.tables_of(rows)


def test_differences_are_those_of_the_evaluation(tables, runs):
    mil, chamfer, reference = tables.table(runs, tables.GROUPS["similarity"], tables.CONFIGS)
    figures = {n: {str(s): v for s, v in enumerate(values)} for n, values in RSUM.items()}
    expected = compare(figures, "smooth_chamfer")
    assert mil["minus reference"] == str(expected["mil"].interval)
    assert mil["p"] == f"{expected['mil'].p:.3f}" and mil["resolved"] == "yes"
    assert chamfer["resolved"] == "no" and float(chamfer["p"]) > 0.5
    assert (mil["seeds"], mil["RSUM"], mil["paper"]) == (3, "361.5", 491.7)
    assert (mil["share"], mil["log Var pictures"], mil["log Var captions"]) == ("0.30", "-2.00", "")
    assert (reference["minus reference"], reference["p"], reference["resolved"]) == ("", "", "")


def test_one_seed_resolves_nothing(tables, runs):
    k1, _ = tables.table(runs, tables.GROUPS["k"], tables.CONFIGS)
    assert (k1["seeds"], k1["minus reference"], k1["resolved"]) == (1, "", "")
    assert k1["share"] == k1["log Var pictures"] == ""  # sets of one element have neither


def test_every_configuration_is_in_a_group_and_changes_one_setting(load):
    c = load("ablation_configs")
    assert {name for group in c.GROUPS.values() for name in group} == set(c.CONFIGS)
    assert all(c.REFERENCE in group for group in c.GROUPS.values())
    changed = {name: words[::2] for name, words in c.CONFIGS.items()}
    assert changed.pop("k1") == ["--model.head", "--model.k"]  # one vector is pooled
    assert changed.pop(c.REFERENCE) == []
    assert all(len(words) == 1 for words in changed.values())


def asked(bench, *words):
    """Settings that the options of a run lead to."""
    from divse.training.command_line import parse

    args = SimpleNamespace(epochs=None)
    return parse(bench.options_of(*words, args))[0]


def test_checks_differ_from_their_configuration_in_the_training_alone(bench, load):
    c = load("ablation_configs")
    assert len(c.CHECKS) == 10 and not set(c.CHECKS) & set(c.CONFIGS)
    for config in c.CHECKED:
        usual = asked(bench, "scenes", config, 0)
        triplet = asked(bench, "scenes", f"{config}_triplet", 0)
        longer = asked(bench, "scenes", f"{config}_2x_epochs", 0)
        changes = {"loss": {"name": "triplet", "margin": 0.2}}
        assert triplet == usual.updated(changes) and triplet.loss.warmup_epochs == 0
        warm = asked(bench, "scenes", f"{config}_warm_triplet", 0)
        assert warm == triplet.updated({"loss": {"warmup_epochs": 10}})
        assert bench.loss_name(warm.to_dict()["loss"]) == "triplet after 10 epochs of info_nce"
        assert bench.loss_name(usual.to_dict()["loss"]) == "info_nce"
        short = bench.words_of("openmoji", f"{config}_warm_triplet")
        assert short[-4:] == ["--epochs", "10", "--loss.warmup_epochs", "5"]
        assert longer == usual.updated({"train": {"epochs": 2 * usual.train.epochs}})


def test_checks_stand_beside_the_ablation_on_their_seeds(csv_rows, tables, table):
    for config, rsum in CHECKS.items():
        epochs = 40 if "2x" in config else 20
        row = {"data": "scenes", "config": config, "seed": 0, "rsum": rsum, "epochs": epochs}
        csv_rows.add_row(table, row | {"loss": "triplet" if "triplet" in config else "info_nce"})
    rows = csv_rows.read_rows(table)
    found = tables.checks(tables.by_config(rows, "scenes"))
    told = [(line["config"], line["RSUM"], line["minus smooth_chamfer"]) for line in found]
    assert told == [
        ("smooth_chamfer", "360.0", ""),
        ("chamfer", "361.0", "+1.0"),
        ("smooth_chamfer_triplet", "300.0", ""),
        ("chamfer_triplet", "310.0", "+10.0"),
        ("pie_net_2x_epochs", "450.0", ""),
    ]
    assert [line["loss"] for line in found][1:3] == ["info_nce", "triplet"]
    assert (found[-1]["epochs"], found[1]["paper"]) == ("40", "-1.2")
    text = tables.tables_of(rows)
    assert "**scenes, looking for the reason**" in text
    assert "triplet" not in text.split("looking for the reason")[0], "no check is in the ablation"


def test_a_step_between_two_heads_has_a_table_of_its_own(bench, csv_rows, tables, table, load):
    c = load("ablation_configs")
    usual, pooled = (asked(bench, "scenes", name, 0) for name in (c.REFERENCE, "attention_pooling"))
    assert pooled == usual.updated({"model": {"head": "pooling"}}) and pooled.model.k == 4
    plain = tables.tables_of(csv_rows.read_rows(table))
    assert "how an element reads" not in plain
    pooling, pie = (400.0, 425.0, 411.0), (410.0, 431.0, 421.0)
    for config, values in (("attention_pooling", pooling), ("pie_net", pie)):
        for seed, rsum in enumerate(values):
            row = {"data": "scenes", "config": config, "seed": seed, "rsum": rsum, "epochs": 20}
            csv_rows.add_row(table, row | {"loss": "info_nce", "check": "reading"})
    rows = csv_rows.read_rows(table)
    runs = tables.by_config(rows, "scenes")
    reference, pooled, _ = tables.table(runs, dict.fromkeys(c.READINGS), c.READINGS)
    figures = {"smooth_chamfer": RSUM["smooth_chamfer"], "attention_pooling": pooling}
    figures["pie_net"] = pie
    keyed = {name: dict(enumerate(values)) for name, values in figures.items()}
    expected = compare(keyed, "smooth_chamfer")["attention_pooling"]
    assert pooled["minus reference"] == str(expected.interval) and pooled["resolved"] == "yes"
    assert "paper" not in reference and reference["minus reference"] == ""
    ablation, _, checks = tables.tables_of(rows).partition("how an element reads")
    assert "attention_pooling" not in ablation and "attention_pooling" in checks


def test_the_table_command_writes_beside_the_csv(run, table):
    code, out = run("ablation", "--table", "--csv", table)
    assert code == 0 and "**scenes, similarity**" in out and "k1 changes two things" in out
    assert table.with_suffix(".md").read_text() in out
    assert "looking for the reason" not in out


@pytest.fixture
def finished(bench, tmp_path, monkeypatch):
    """A finished run of one epoch; what would be trained is refused."""
    refuse = SimpleNamespace(run=lambda *a, **k: pytest.fail("trained again"))
    monkeypatch.setattr(bench, "subprocess", refuse)
    monkeypatch.setattr(bench, "shares", lambda folder, cache: {"share_images_1": 0.5})
    folder = tmp_path / "runs" / "scenes" / "mil-0"
    folder.mkdir(parents=True)
    args = SimpleNamespace(epochs=1)
    from divse.training.command_line import parse

    config = parse([*bench.options_of("scenes", "mil", 0, args), "--out", "elsewhere"])[0]
    (folder / "settings.json").write_text(json.dumps(config.to_dict()))
    (folder / "test.json").write_text(json.dumps({"rsum": 123.0}))
    return folder


def words(tmp_path, *more):
    paths = ("--runs", tmp_path / "runs", "--csv", tmp_path / "a.csv")
    return (*paths, "--configs", "mil", "--seeds", 0, *more)


def test_a_finished_run_is_not_trained_again(run, finished, csv_rows, tmp_path):
    code, out = run("ablation", *words(tmp_path, "--epochs", 1))
    assert code == 0 and "RSUM 123.0" in out
    (row,) = csv_rows.read_rows(tmp_path / "a.csv")
    assert (row["config"], row["epochs"], row["share_images_1"]) == ("mil", "1", "0.5")
    assert run("ablation", *words(tmp_path, "--epochs", 1))[0] == 0
    with pytest.raises(SystemExit, match="mil 0 with 1 epochs, 20 were asked"):
        run("ablation", *words(tmp_path))


def test_a_run_with_other_settings_is_refused(run, finished, tmp_path):
    with pytest.raises(SystemExit, match=r"train.epochs is 1 there, 2 was asked\. Remove it"):
        run("ablation", *words(tmp_path, "--epochs", 2))
    settings = json.loads((finished / "settings.json").read_text())
    settings["loss"]["similarity"] = "mp"
    (finished / "settings.json").write_text(json.dumps(settings))
    (finished / "test.json").unlink()  # one to be continued is no better
    with pytest.raises(SystemExit, match="loss.similarity is 'mp' there, 'mil' was asked"):
        run("ablation", *words(tmp_path, "--epochs", 1))
    (finished / "settings.json").write_text('{"model": {"legs": 4}}')
    with pytest.raises(SystemExit, match="unknown setting model.legs"):
        run("ablation", *words(tmp_path, "--epochs", 1))
    (finished / "settings.json").unlink()
    (finished / "test.json").write_text("{}")
    with pytest.raises(SystemExit, match="does not say its settings"):
        run("ablation", *words(tmp_path, "--epochs", 1))


def test_checks_are_chosen_by_one_word(bench, monkeypatch):
    monkeypatch.setattr("sys.argv", ["ablation.py", "--checks"])
    args = bench.arguments()
    assert args.seeds == [0] and args.configs == list(bench.CHECKS)
    monkeypatch.setattr("sys.argv", ["ablation.py"])
    args = bench.arguments()
    assert args.seeds == [0, 1, 2] and args.configs == list(bench.CONFIGS)
