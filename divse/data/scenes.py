"""scenes: generated pictures of a few objects, captions that fit several of them, exact truth.

A picture holds `objects` = 3 to 6 objects, each with six facts: size, texture, colour, shape, row
and column (scene_objects). Five captions a picture tell facts about one or two of its objects, or
a relation between two (scene_captions), so no caption describes the whole picture and most fit
several. That is the many-to-many ambiguity of real captions, except that here the truth is known:
`relevance` holds every fitting pair.

The default `detail` = 5 facts a caption, measured on the 500 test pictures: a caption fits 5
pictures in the median (quarters at 2 and 11, 11 in 100 fit one alone) and a picture 40 of the 2500
captions. Among the other pictures of a batch of 50, at least one fits for 39 in 100 captions: that
many "hardest negatives" can be false. With one fact less it is 66 in 100 (median 15 pictures); with
one more 18 in 100 (median 2), and 30 in 100 captions fit a single picture.

The same options give the same bytes everywhere: whole-number arithmetic and raw PCG64 streams.
"""

from __future__ import annotations

from dataclasses import dataclass, fields
from typing import Any

import numpy as np
from numpy.typing import NDArray

from divse.data.dataset import SPLITS, ImageTextData, check_split
from divse.data.scene_captions import Caption, draw_caption, fitting
from divse.data.scene_drawing import draw_scene
from divse.data.scene_objects import CELLS, FACTS, Draws, Scenes, draw_objects

SCENES_VERSION = 1
PICTURES = {"train": 3000, "val": 300, "test": 500}
CAPTIONS_A_PICTURE = 5
_OBJECTS, _CAPTIONS, _PIXELS = range(3)  # separate streams: dials of one leave the others alone


@dataclass(frozen=True)
class SceneOptions:
    """The dials of the generator.

    objects: fewest and most objects in a picture, both within 2 .. 9
    detail: how many facts a caption tells, give or take one, within 2 .. 6
    pictures: pictures in the split; None = the standard size. A larger split begins with the
        pictures of a smaller one
    seed: another seed is another world
    version: of the generator. Asking for one that this code cannot make is refused
    """

    objects: tuple[int, int] = (3, 6)
    detail: int = 5
    pictures: int | None = None
    seed: int = 0
    version: int = SCENES_VERSION

    def __post_init__(self) -> None:
        """Refuse dials out of range."""
        fewest, most = self.objects
        if not 2 <= fewest <= most <= CELLS:
            raise ValueError(
                f"objects must be (fewest, most) with 2 <= fewest <= most <= {CELLS} "
                f"(a relation needs two, the grid has {CELLS} cells), got {self.objects}"
            )
        if not 2 <= self.detail <= len(FACTS):
            raise ValueError(f"detail must be 2 .. {len(FACTS)}, got {self.detail}")
        if self.pictures is not None and self.pictures < 1:
            raise ValueError(f"pictures must be at least 1, got {self.pictures}")
        if self.seed < 0:
            raise ValueError(f"seed must not be negative, got {self.seed}")
        if self.version != SCENES_VERSION:
            raise ValueError(
                f"this divse makes scenes version {SCENES_VERSION}, version {self.version} was "
                "asked for: install the release that made it, or regenerate"
            )


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
        scenes[i] = draw_objects(Draws(*key, _OBJECTS), *options.objects)
        captions += _draw_captions(scenes[i], Draws(*key, _CAPTIONS), options.detail)
    return SceneSplit(scenes, captions)


def _key(split: str, index: int, options: SceneOptions) -> tuple[int, ...]:
    return (SCENES_VERSION, options.seed, SPLITS.index(split), index)


def load(split: str, *, path: object = None, **options: Any) -> ImageTextData:
    """Generate a split of scenes; `options` are those of SceneOptions.

    Pictures are drawn when they are asked for, (64, 64, 3); `relevance` is exact.
    """
    if path is not None:
        raise ValueError(f"scenes are generated, there is no path to read: got path={path!r}")
    settings = _settings(options)
    drawn = describe(split, settings)

    def read_image(index: int) -> NDArray[np.uint8]:
        draws = Draws(*_key(split, index, settings), _PIXELS)
        return draw_scene(drawn.scenes[index], draws)

    count = len(drawn.scenes)
    return ImageTextData(
        name="scenes",
        split=split,
        image_ids=[f"{split}-{i:05d}" for i in range(count)],
        captions=[str(caption) for caption in drawn.captions],
        image_of_caption=np.repeat(np.arange(count), CAPTIONS_A_PICTURE),
        read_image=read_image,
        oracle=drawn.fitting,
    )


def _settings(options: dict[str, Any]) -> SceneOptions:
    known = [field.name for field in fields(SceneOptions)]
    for name in options:
        if name not in known:
            raise ValueError(f"scenes has no option {name!r}; its options are {', '.join(known)}")
    return SceneOptions(**options)
