"""Train a model that embeds pictures and captions as sets: a page to read from top to bottom.

python train.py --preset scenes
python train.py --preset captions --data FOLDER --image.weights FILE
python train.py --resume runs/scenes-20250101-120000
torchrun --nproc-per-node 8 train.py --preset captions ...
"""

import sys
from collections.abc import Sequence
from functools import partial

from divse import DivSE, Gallery, calls, explain
from divse.encoder import build_model, build_tokenizer
from divse.models.weights import write_json
from divse.training import distributed
from divse.training.acceleration import prepare
from divse.training.command_line import parse
from divse.training.loop import Trainer
from divse.training.losses import similarity_options
from divse.training.report import evaluate, gallery_columns, table
from divse.training.run import (
    cache_folder,
    ends_in_a_sentence,
    load_splits,
    open_folder,
    prepare_run,
)
from divse.training.split import Split


def main(arguments: Sequence[str] | None = None) -> None:
    """Config -> data -> model -> fit -> evaluate -> save -> gallery."""
    config, resume = parse(arguments)
    data = load_splits(config)
    folder, device = prepare_run(config, resume)

    # model: captions become tokens, pictures pixels; frozen encoders run once
    with ends_in_a_sentence():
        tokenizer = build_tokenizer(config.text, data["train"].captions, config.data.min_count)
        similarity = similarity_options(config.loss)
        model = build_model(config, tokenizer, similarity).to(device)
    open_folder(folder, config, resume)
    encoder = DivSE(model, config, tokenizer, similarity)
    print(f"{data['train'].name}: {len(data['train'])} pictures -> {folder}, on {device}")
    cache = cache_folder(config, folder)
    with distributed.first_goes_first():
        train, val, test = (
            Split.prepare(data[name], tokenizer, model, config, cache)
            for name in ("train", "val", "test")
        )

    # fit: the weights that are best on val are saved in the run folder as they come
    model = prepare(model, config.train)
    with ends_in_a_sentence():
        keep = partial(encoder.save_pretrained, folder)
        trainer = Trainer(model, config, train, val, folder, keep)
    trainer.fit()
    if not distributed.leave():
        return  # the first process goes on alone

    # evaluate the saved weights on test
    best = DivSE.from_pretrained(folder, device)
    images, texts = test.encode(best.model)
    figures = evaluate(images, texts, test.data, config, best.model.similarity_parameters())
    write_json(folder / "test.json", figures)
    some = images[:1].torch(device), texts[:1].torch(device)
    served = explain(*some, config.loss.similarity, impl=config.train.impl)
    print(f"\n{table(figures, test.data)}\n")
    print(f"scores computed by {served}; calls: {dict(calls)}")

    # a gallery of the test pictures: divse-search query RUN/gallery --model RUN --text "..."
    if config.train.gallery:
        Gallery.create(
            folder / "gallery",
            images,
            test.data.image_ids,
            gallery_columns(test.data),
            metadata={"model": best.record(folder)},
            overwrite=True,
        )
    print(f"model and gallery: {folder}")


if __name__ == "__main__":
    try:
        main()
    except FileNotFoundError as error:
        sys.exit(f"train.py: {error}")
    except KeyboardInterrupt:
        sys.exit("\ntrain.py: stopped; --resume RUN continues from the last checkpoint")
