"""The work of `divse-eval`: read what is given, measure model by model, show the results."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from io import StringIO
from pathlib import Path
from typing import Any

import numpy as np
import typer

from divse.cli.eval_data import (
    DataOptions,
    load_data,
    of_data,
    of_shape,
    same_data,
    with_ids,
    with_relevance,
)
from divse.cli.eval_models import Model, ensemble, of_files, of_matrix, of_run, run_settings, usable
from divse.cli.eval_options import NAMES
from divse.cli.eval_output import Resampling, Results, markdown, pages, show
from divse.cli.progress import SearchBars
from divse.data import SPLITS, ImageTextData
from divse.evaluation.corpus import Corpus
from divse.evaluation.protocols import PROTOCOLS, Protocol, Sources, answer

BY_ID = {"cxc", "eccv", "pmrp", "pmrp-1k"}  # ground truth that goes by COCO's ids
WRITTEN = (".json", ".md", ".txt")
Given = Mapping[str, Any]  # the command line: option -> value


def measure_and_show(given: Given) -> None:
    """Run the command with its options."""
    check(given)
    resampling = Resampling(given["resamples"], given["confidence"], given["seed"])
    bars = SearchBars()
    work = Work(given, resampling, bars)
    try:
        results = work.done()
    finally:
        bars.close()
    document = results.document(given["compare"])
    found = pages(document, given["intervals"])
    texts = {
        ".json": json.dumps(document, indent=1) + "\n",
        ".md": markdown(found, results.notes()),
    }
    for file in given["out"] or []:
        file.write_text(texts.get(file.suffix) or plain(found, results.notes()), encoding="utf-8")
    if given["as_json"]:
        typer.echo(json.dumps(document))
    elif given["as_markdown"]:
        typer.echo(texts[".md"], nl=False)
    else:
        show(found, results.notes(), sys.stdout)


def plain(found: Sequence[Any], notes: Sequence[str]) -> str:
    """Tables as plain text."""
    stream = StringIO()
    show(found, notes, stream)
    return stream.getvalue()


def check(given: Given) -> None:
    """Refuse options that cannot work together, with exit code 2."""
    sides = [len(given[name] or []) for name in ("images_embeddings", "texts_embeddings")]
    models = len(given["runs"]) + sides[0] + len(given["scores"] or [])
    unknown = [name for name in given["protocol"] or [] if name not in NAMES]
    lengths = given["images_lengths"] or given["texts_lengths"]
    wrong = (
        (sides[0] != sides[1], "--images-embeddings and --texts-embeddings come in pairs"),
        (not models, "give a run, --images-embeddings and --texts-embeddings, or --scores"),
        (bool(lengths) and sides[0] != 1, "lengths belong to one pair of files of embeddings"),
        (bool(unknown), f"--protocol: got {', '.join(unknown)}; known: {', '.join(NAMES)}"),
        (
            given["split"] not in SPLITS,
            f"--split: got {given['split']!r}, expected one of {', '.join(SPLITS)}",
        ),
        (given["as_json"] and given["as_markdown"], "give --json or --markdown, not both"),
        (given["ensemble"] and models < 2, "--ensemble needs two models at least"),
        (given["compare"] and models < 2, "--compare needs two models at least"),
        (given["compare"] and not given["resamples"], "--compare needs --resamples"),
        (given["resamples"] < 0, "--resamples: expected 0 or more"),
        (not 0 < given["confidence"] < 1, "--confidence: expected a share between 0 and 1"),
        (given["block"] < 1, "--block: expected at least 1"),
        (
            any(file.suffix not in WRITTEN for file in given["out"] or []),
            f"--out: expected a file called *{', *'.join(WRITTEN)}",
        ),
        (
            any(not file.parent.is_dir() for file in given["out"] or []),
            "--out: expected a file in a folder that is there",
        ),
    )
    for applies, message in wrong:
        if applies:
            raise typer.BadParameter(message)


@dataclass
class Work:
    """Models one after another, on one and the same data."""

    given: Given
    resampling: Resampling
    progress: Any
    corpus: Corpus | None = None
    data: ImageTextData | None = None
    protocols: list[Protocol] = field(default_factory=list)
    loaded: dict[str, ImageTextData] = field(default_factory=dict)

    def done(self) -> Results:
        """Measure all models, and their ensemble if asked."""
        results, kept = Results(self.resampling), []
        for model in self._models():
            self._answer(model, results)
            if self.given["ensemble"]:
                kept.append(model)
        if kept:
            self._answer(ensemble(kept), results)
        assert self.corpus is not None
        results.data = {
            "name": self.corpus.name,
            "split": self.given["split"],
            "pictures": self.corpus.images,
            "captions": self.corpus.captions,
        }
        return results

    def _answer(self, model: Model, results: Results) -> None:
        asked = [model.serves(protocol) for protocol in self.protocols]
        block = self.given["block"]
        found = answer(asked, model.scores, block=block, progress=self.progress)
        results.add(model.name, found, model.spread)

    def _models(self) -> Iterator[Model]:
        given = self.given
        for folder in given["runs"]:
            config = run_settings(folder)
            data = self._data(config)
            self._meet(of_data(data), data, config.data.path if config is not None else "")
            yield of_run(folder, data, given["impl"], given["device"], config)
        options = {name: given[name] for name in ("similarity", "alpha", "impl")}
        options["device"] = usable(given["device"])
        lengths = given["images_lengths"], given["texts_lengths"]
        for pair in zip(
            given["images_embeddings"] or [], given["texts_embeddings"] or [], strict=True
        ):
            yield self._met(of_files(*pair, lengths, options))
        for file in given["scores"] or []:
            yield self._met(of_matrix(file))

    def _data(self, config: Any = None) -> ImageTextData:
        """The data of a run, or of --data, loaded once."""
        about = self._options()
        key = repr(about.path if about.path is not None else config and config.data)
        if key not in self.loaded:
            self.loaded[key] = load_data(about, config)
        return self.loaded[key]

    def _options(self) -> DataOptions:
        from divse.training.command_line import json_or_text

        given, settings = self.given, {}
        for word in given["option"] or []:
            name, separator, value = word.partition("=")
            if not separator:
                raise typer.BadParameter(f"--option: got {word!r}, expected NAME=VALUE")
            settings[name] = json_or_text(value)
        names = ("layout", "split", "owners", "relevance", "karpathy", "image_ids", "caption_ids")
        return DataOptions(given["data"], options=settings, **{name: given[name] for name in names})

    def _met(self, model: Model) -> Model:
        """A model of files, whose sizes must fit the data."""
        shape = model.scores["i2t"].shape
        if self.given["data"] is not None or self.given["layout"]:
            data = self._data()
            self._meet(of_data(data), data)
        elif self.corpus is None:
            self._meet(of_shape(shape, self._options()), None)
        assert self.corpus is not None
        if shape != (self.corpus.images, self.corpus.captions):
            raise ValueError(
                f"{model.name} has {shape[0]} pictures and {shape[1]} captions, {self.corpus.name} "
                f"has {self.corpus.images} and {self.corpus.captions}"
            )
        return model

    def _meet(self, corpus: Corpus, data: ImageTextData | None, path: str = "") -> None:
        """Take the first model's data for all, and refuse a model of other data.

        `path` is where a run had its data from.
        """
        if self.corpus is not None:
            same = np.array_equal(self.corpus.image_of_caption, corpus.image_of_caption)
            if self.data is not None and data is not None:
                same = same and same_data(self.data, data)
            if not same or corpus.images != self.corpus.images:
                raise ValueError(
                    f"{corpus.name} is not the data of the models before, {self.corpus.name}: give "
                    "--data, which then holds for all"
                )
            return
        about = self._options()
        corpus = with_relevance(corpus, about)
        names = expanded(self.given["protocol"] or ["own"])
        if BY_ID & set(names):
            if about.path is None and path:
                about = replace(about, path=Path(path))
            corpus = with_ids(corpus, about, data)
        sources = Sources(self.given["cxc"], self.given["eccv"], self.given["pmrp"], about.split)
        self.protocols = [PROTOCOLS[name](corpus, sources) for name in names]
        self.corpus, self.data = corpus, data


def expanded(names: Sequence[str]) -> list[str]:
    """Names of protocols, each once; coco means COCO 1K and 5K."""
    every = [n for name in names for n in (("coco-1k", "coco-5k") if name == "coco" else (name,))]
    return list(dict.fromkeys(every))
