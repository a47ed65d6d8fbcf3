"""scenes: generated pictures of a few objects, captions that fit several of them, exact truth.

A picture holds `objects` = 3 to 6 objects, each with six facts: size, texture, colour, shape, row
and column (scene_objects). Five captions a picture tell facts about one or two of its objects, or
a relation between two (scene_captions), so no caption describes the whole picture and most fit
several. That is the many-to-many ambiguity of real captions, except that here the truth is known:
`relevance` holds every fitting pair. docs/scenes.md is the benchmark's description; the dials and
levels are in scene_options.

The same options give the same bytes everywhere: whole-number arithmetic and raw PCG64 streams. The
generator has a version, which is part of every name (`SceneOptions.name`); what version 1 makes
never changes, and `digest` is the proof.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from divse.data.dataset import SPLITS, ImageTextData, check_split
from divse.data.scene_captions import Caption, draw_caption, fitting
from divse.data.scene_drawing import draw_scene
from divse.data.scene_objects import FACTS, Draws, Scenes, change_one_look, draw_objects
from divse.data.scene_options import LEVELS, SCENES_VERSION, SceneOptions

__all__ = ["LEVELS", "SCENES_VERSION", "SceneOptions", "SceneSplit", "describe", "digest", "load"]
PICTURES = {"train": 3000, "val": 300, "test": 500}
CAPTIONS_A_PICTURE = 5
_OBJECTS, _CAPTIONS, _PIXELS = range(3)  # separate streams: dials of one leave the others alone


def _draw_captions(objects: NDArray[np.int8], draws: Draws, detail: int) -> list[Caption]:
    """Draw the captions of one picture, no two alike."""
    captions: dict[str, Caption] = {}
    while len(captions) < CAPTIONS_A_PICTURE:
        caption = draw_caption(objects, draws, detail)
        captions.setdefault(str(caption), caption)
    return list(captions.values())


@dataclass(frozen=True)
class SceneSplit:
    """A split before it is drawn: the objects (I, M, 6) and five parsed captions a scene."""

    scenes: Scenes
    captions: list[Caption]

    def fitting(self) -> NDArray[np.bool_]:
        """Tell which scenes each caption fits, bool (I, 5 I)."""
        return fitting(self.scenes, self.captions)


def describe(split: str, options: SceneOptions | None = None) -> SceneSplit:
    """Draw the objects and captions of a split, without pictures."""
    check_split(split)
    options = options or SceneOptions()
    count = options.pictures or PICTURES[split]
    scenes = np.empty((count, options.objects[1], len(FACTS)), dtype=np.int8)
    captions = []
    for i in range(count):
        key = _key(split, i, options)
        draws = Draws(*key, _OBJECTS)
        if options.twins and i % 2:
            scenes[i] = change_one_look(scenes[i - 1], draws, options.colours)
        else:
            scenes[i] = draw_objects(draws, *options.objects, options.colours)
        captions += _draw_captions(scenes[i], Draws(*key, _CAPTIONS), options.detail)
    return SceneSplit(scenes, captions)


def _key(split: str, index: int, options: SceneOptions) -> tuple[int, ...]:
    return (SCENES_VERSION, options.seed, SPLITS.index(split), index)


def load(split: str, *, path: object = None, **options: Any) -> ImageTextData:
    """Generate a split of scenes; `options` are those of SceneOptions, and level=NAME.

    Pictures are drawn when they are asked for, (64, 64, 3); `relevance` is exact.
    """
    if path is not None:
        raise ValueError(f"scenes are generated, there is no path to read: got path={path!r}")
    settings = SceneOptions.of(**options)
    drawn = describe(split, settings)

    def read_image(index: int) -> NDArray[np.uint8]:
        draws = Draws(*_key(split, index, settings), _PIXELS)
        return draw_scene(drawn.scenes[index], draws, settings.noise, settings.clutter)

    count = len(drawn.scenes)
    return ImageTextData(
        name=settings.name,
        split=split,
        image_ids=[f"{split}-{i:05d}" for i in range(count)],
        captions=[str(caption) for caption in drawn.captions],
        image_of_caption=np.repeat(np.arange(count), CAPTIONS_A_PICTURE),
        read_image=read_image,
        oracle=drawn.fitting,
    )


def digest(data: ImageTextData) -> str:
    """SHA-256 of all pixels, captions, owners and fitting pairs of a split: its exact contents."""
    relevance = data.relevance
    assert relevance is not None
    total = hashlib.sha256()
    for index in range(len(data)):
        total.update(data.image(index).tobytes())
    total.update("\n".join(data.captions).encode())
    total.update(data.image_of_caption.astype("<i8").tobytes())
    total.update(np.packbits(relevance).tobytes())
    return total.hexdigest()
