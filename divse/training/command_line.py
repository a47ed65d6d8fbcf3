"""Command line of train.py: every setting of every section, and short names for the common ones."""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from dataclasses import fields
from pathlib import Path
from typing import Any

from divse.training.check import TABLES, check
from divse.training.config import (
    SECTIONS,
    Config,
    find_weights,
    presets,
    read_file,
    read_preset,
    setting_types,
    unknown,
)

SHORT = {
    "--data": "data.path",
    "--out": "train.out",
    "--seed": "train.seed",
    "--impl": "train.impl",
    "--epochs": "train.epochs",
}
# what may differ when a run is resumed: where it runs, not what it computes
RESUMABLE = {"train.device"}


def parse(arguments: Sequence[str] | None = None) -> tuple[Config, bool]:
    """Read the command line -> (checked config, whether a run is to be resumed).

    Wrong settings end the program with a sentence, as argparse does.
    """
    parser = build_parser()
    options, rest = parser.parse_known_args(arguments)
    given = {
        name: value for name, value in vars(options).items() if "." in name and value is not None
    }
    try:
        if rest:
            raise ValueError(unknown("option", rest[0].split("=")[0], flags(parser)))
        return check(collect(options, given)), bool(options.resume)
    except ValueError as error:
        parser.exit(2, f"{parser.prog}: {error}\n")


def collect(options: argparse.Namespace, given: dict[str, Any]) -> Config:
    """Merge preset, file and command line, or take the settings of the run to resume."""
    command_line: dict[str, dict[str, Any]] = {}
    for name, value in given.items():
        section, key = name.split(".")
        command_line.setdefault(section, {})[key] = value
    if options.resume:
        refused = [name for name in given if name not in RESUMABLE]
        if refused or options.preset or options.config:
            raise ValueError("--resume takes its settings from the run; give no others")
        saved = read_file(Path(options.resume) / "settings.json")
        return Config.of(saved, command_line, {"train": {"out": options.resume}})
    sources = []
    if options.preset:
        sources.append(read_preset(options.preset))
    if options.config:
        sources.append(read_file(options.config))
    return find_weights(Config.of(*sources, command_line))


def build_parser() -> argparse.ArgumentParser:
    """Build the parser, one group of options per section."""
    parser = argparse.ArgumentParser(
        usage="train.py [--preset NAME] [--config FILE] [--section.setting VALUE ...]",
        prog="train.py",
        description="Train a two-tower model that embeds pictures and captions as sets.",
        epilog="Later wins: defaults < --preset < --config < options on the command line.",
        allow_abbrev=False,
        formatter_class=lambda prog: argparse.HelpFormatter(prog, max_help_position=32, width=96),
    )
    parser.add_argument("--preset", metavar="NAME", help=f"one of: {', '.join(presets())}")
    parser.add_argument("--config", metavar="FILE", help="settings from a .toml or .json file")
    parser.add_argument("--resume", metavar="RUN", help="continue the run in this folder")
    for flag, target in SHORT.items():
        add_setting(parser, target, flag)
    for section in SECTIONS:
        add_section(parser, section)
    return parser


def add_section(parser: argparse.ArgumentParser, section: str) -> None:
    """Add the options of one section as a group of the help text."""
    group = parser.add_argument_group(
        section, (getattr(Config(), section).__doc__ or "").split(":")[0]
    )
    for name in setting_types(section):
        add_setting(group, f"{section}.{name}", f"--{section}.{name}")


def add_setting(group: Any, target: str, flag: str) -> None:
    """Add one option that stores its setting under the name `section.setting`."""
    section, name = target.split(".")
    kind = setting_types(section)[name]
    plain = getattr(kind, "__origin__", kind)
    owner = getattr(Config(), section)
    field = next(f for f in fields(owner) if f.name == name)
    text, default = field.metadata["help"], getattr(owner, name)
    choices = TABLES.get(target) or field.metadata["choices"]
    if flag in SHORT:
        text = f"short for --{target}"
    elif choices:
        text = f"{text}: {', '.join(choices)}"
    if flag not in SHORT and default not in ("", [], {}):
        shown = " ".join(default) if plain is list else json.dumps(default).strip('"')
        text = f"{text} [{shown}]"
    if plain is dict:
        group.add_argument(
            flag, dest=target, nargs="+", action=KeyValues, metavar="NAME=VALUE", help=text
        )
        return
    if plain is list:
        group.add_argument(flag, dest=target, nargs="*", metavar="NAME", help=text)
        return
    converter = boolean if plain is bool else plain
    metavar = {bool: "true|false", int: "N", float: "X", str: "TEXT"}[plain]
    group.add_argument(
        flag, dest=target, type=converter, metavar=metavar, help=text.replace("%", "%%")
    )


class KeyValues(argparse.Action):
    """Collect name=value words into a dict; values are JSON where they parse, else text."""

    def __call__(self, parser: Any, namespace: Any, values: Any, option: Any = None) -> None:
        """Store the dict."""
        pairs = [word.partition("=") for word in values]
        if any(not separator for _, separator, _ in pairs):
            parser.error(f"{option} takes name=value words, got {' '.join(values)}")
        setattr(namespace, self.dest, {name: json_or_text(value) for name, _, value in pairs})


def json_or_text(word: str) -> Any:
    """Read a word as JSON (numbers, true, [3, 6]) or keep it as text."""
    try:
        return json.loads(word)
    except json.JSONDecodeError:
        return word


def boolean(word: str) -> bool:
    """Read true or false."""
    known = {"true": True, "yes": True, "1": True, "false": False, "no": False, "0": False}
    if word.lower() not in known:
        raise argparse.ArgumentTypeError(f"got {word!r}, expected true or false")
    return known[word.lower()]


def flags(parser: argparse.ArgumentParser) -> list[str]:
    """List all long options of a parser."""
    return [flag for action in parser._actions for flag in action.option_strings]
