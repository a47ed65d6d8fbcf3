import json

import pytest
import tiny

from divse.training.check import IMPOSSIBLE, RANGES, check
from divse.training.command_line import build_parser, flags, parse
from divse.training.config import SECTIONS, Config, presets, read_preset, setting_types


def parsed(line):
    """Config of an accepted command line."""
    return parse(line.split())[0]


def refused(capsys, *words):
    """Message of a refused command line."""
    with pytest.raises(SystemExit) as exit_:
        parse(words)
    assert exit_.value.code == 2
    return capsys.readouterr().err


def test_later_sources_win(tmp_path):
    file = tmp_path / "mine.toml"
    file.write_text("[model]\nk = 7\ndim = 48\n[optim]\nlr = 0.5\n")
    preset, _ = parse(["--preset", "scenes"])
    config, resume = parse(["--preset", "scenes", "--config", str(file), "--model.k", "3"])
    assert not resume
    assert config.model.k == 3  # command line
    assert config.model.dim == 48 and config.optim.lr == 0.5  # file
    assert config.image == preset.image  # preset
    assert config.loss.alpha == 16  # default


def test_json_files_and_whole_numbers_for_floats(tmp_path):
    file = tmp_path / "mine.json"
    file.write_text(json.dumps({"loss": {"alpha": 8}}))
    config, _ = parse(["--config", str(file)])
    assert config.loss.alpha == 8


def test_short_names():
    line = "--data D --out O --seed 5 --impl native --epochs 2"
    config = parsed(f"--data.name captions {line}")
    assert (config.data.path, config.train.out, config.train.seed) == ("D", "O", 5)
    assert (config.train.impl, config.train.epochs) == ("native", 2)


def test_options_of_the_data_set_are_merged(tmp_path):
    file = tmp_path / "mine.toml"
    file.write_text("[data.options]\ndetail = 3\npictures = 9\n")
    config = parsed(f"--config {file} --data.options detail=4")
    assert config.data.options == {"detail": 4, "pictures": 9}


def test_every_setting_is_on_the_command_line():
    known = flags(build_parser())
    for section in SECTIONS:
        for name in setting_types(section):
            assert f"--{section}.{name}" in known


def test_help_is_readable(capsys):
    with pytest.raises(SystemExit) as exit_:
        parse(["--help"])
    assert exit_.value.code == 0
    text = capsys.readouterr().out
    assert all(f"\n{section}:\n" in text for section in SECTIONS)
    assert "[4]" in text and "set_prediction" in text and "captions, clip, coco_" in text
    assert max(map(len, text.splitlines())) <= 100


def test_lists_options_and_switches():
    config = parsed(
        "--data.augment shift crop --data.options detail=4 objects=[2,3] --model.shared no"
    )
    assert config.data.augment == ["shift", "crop"]
    assert config.data.options == {"detail": 4, "objects": [2, 3]}
    assert config.model.shared is False


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        ("--model.kk 4", "did you mean --model.k?"),
        ("--optim.learning_rate 4", "--optim."),
        ("--preset scene", "did you mean scenes?"),
        ("--model.head set_predicton", "did you mean set_prediction?"),
        ("--loss.similarity smoothchamfer", "did you mean smooth_chamfer?"),
        ("--image.encoder resnet", "known: cnn, timm, transformer, regions"),
        ("--data.augment shfit", "did you mean shift?"),
        ("--model.k four", "invalid int value"),
        ("--model.k 0", "expected 1 to"),
        ("--loss.alpha -1", "loss.alpha: got -1"),
        ("--text.frozen maybe", "expected true or false"),
        ("--config missing.toml", "no settings file at missing.toml"),
        ("--resume missing", "no settings file at"),
        ("--data.options detail", "name=value"),
    ],
)
def test_refusals(capsys, words, expected):
    assert expected in refused(capsys, *words.split())


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        ("[modle]\nk = 4", "unknown section modle; did you mean model?"),
        ("[model]\nks = 4", "unknown setting model.ks; did you mean model.k?"),
        ('[model]\nk = "4"', "model.k: got '4' (str), expected int"),
        ("model = 4", "model is a section"),
        ("[model\n", "cannot be read"),
    ],
)
def test_refusals_of_files(capsys, tmp_path, content, expected):
    file = tmp_path / "wrong.toml"
    file.write_text(content)
    assert expected in refused(capsys, "--config", str(file))


@pytest.mark.parametrize(
    "words",
    [
        "--image.encoder timm",
        "--image.name resnet50",
        "--image.frozen true",
        "--text.encoder transformer",
        "--text.path somewhere",
        "--text.frozen true",
        "--data.word_drop 0.2 --text.encoder transformer --text.path p",
        "--image.encoder timm --image.name n --image.weights w --image.frozen true "
        "--data.augment crop",
        "--image.encoder timm --image.name n --image.frozen true",
        "--image.level 2",
        "--image.encoder transformer",
        "--image.encoder regions --image.name n",
        "--image.encoder regions --image.frozen true",
        "--text.tuned_blocks 1",
        "--image.encoder timm --image.name n --image.weights w --image.frozen true "
        "--image.tuned_blocks 1",
        "--image.encoder timm --image.name n --image.weights w --image.frozen true "
        "--image.center true --image.projection local",
        "--image.encoder timm --image.name n --image.level 1 --image.pool detail "
        "--image.projection local",
        "--text.projection local",
        "--text.projection none --text.hidden 8",
        "--text.encoder transformer --text.path p --text.vectors v",
        "--image.encoder timm --image.name n --image.pool mean detail",
        "--text.center true",
        "--text.input_dropout 0.1",
        "--data.name captions",
        "--loss.log_mean true --loss.similarity mil",
        "--train.batch_size 1",
        "--train.sync_batchnorm true --train.sub_batch 2",
    ],
)
def test_impossible_combinations(capsys, words):
    message = refused(capsys, *words.split())
    assert any(sentence in message for _, sentence in IMPOSSIBLE)


def test_another_encoder_drops_the_settings_of_the_first():
    line = "--preset captions --data P --image.encoder cnn --text.encoder gru"
    config = parsed(line)
    assert config.image == type(config.image)() and config.text == type(config.text)()
    assert config.model == parsed("--preset captions --data P --image.weights W").model
    kept = parsed("--preset captions --data P --image.encoder timm --image.weights W")
    assert kept.image.level == 3  # it is the encoder of the preset


def test_presets_are_valid_and_shipped():
    assert {"scenes", "captions"} <= set(presets())
    for name in presets():
        values = read_preset(name)
        brought = {} if name == "scenes" else {"data": {"path": "P"}}  # by the user
        weights = {"image": {"weights": "W"}} if name == "captions" else {}
        check(Config.of(values, brought, weights))


def test_weights_are_found_beside_the_data(tmp_path, capsys):
    line = f"--preset captions --data {tmp_path / 'mine'}"
    assert "--image.weights FILE" in refused(capsys, *line.split())
    (tmp_path / "mine").mkdir()
    (tmp_path / "weights").mkdir()
    file = tmp_path / "weights" / "tf_efficientnet_lite0.safetensors"
    file.touch()
    assert parsed(line).image.weights == str(file)
    assert parsed(f"{line} --image.weights other").image.weights == "other"


def test_ranges_name_real_settings():
    for name in RANGES:
        section, setting = name.split(".")
        assert setting in setting_types(section)


def test_a_config_survives_its_own_dictionary():
    config, _ = parse(tiny.arguments())
    assert Config.of(json.loads(json.dumps(config.to_dict()))) == config
