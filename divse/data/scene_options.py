"""The dials of scenes, its named levels, and the name that a choice of them goes by."""

from __future__ import annotations

from dataclasses import dataclass, fields
from typing import Any

from divse.data.scene_objects import CELLS, FACTS

SCENES_VERSION = 1
CLUTTER_LIMIT, NOISE_LIMIT = 20, 60
LEVELS: dict[str, dict[str, Any]] = {
    "easy": {"objects": (2, 3), "colours": 4, "noise": 0},
    "default": {},
    "hard": {"objects": (5, 8), "detail": 6, "twins": True, "clutter": 8, "noise": 24},
}


@dataclass(frozen=True)
class SceneOptions:
    """The dials of the generator.

    objects: fewest and most objects in a picture, both within 2 .. 9
    detail: how many facts a caption tells, give or take one, within 2 .. 6
    pictures: pictures in the split; None = the standard size. A larger split begins with the
        pictures of a smaller one
    seed: another seed is another world
    version: of the generator. Asking for one that this code cannot make is refused
    colours: size of the vocabulary of colours, within 2 .. 8
    twins: every second picture is the one before it with one look of one object changed
    clutter: grey discs over the objects, which no caption names, within 0 .. 20
    noise: amplitude of the grain in grey levels, within 0 .. 60
    """

    objects: tuple[int, int] = (3, 6)
    detail: int = 5
    pictures: int | None = None
    seed: int = 0
    version: int = SCENES_VERSION
    colours: int = len(FACTS["colour"])
    twins: bool = False
    clutter: int = 0
    noise: int = 9

    def __post_init__(self) -> None:
        """Refuse dials out of range."""
        object.__setattr__(self, "objects", tuple(self.objects))  # a file may hold a list
        if len(self.objects) != 2 or not 2 <= self.objects[0] <= self.objects[1] <= CELLS:
            raise ValueError(
                f"objects must be (fewest, most) with 2 <= fewest <= most <= {CELLS} "
                f"(a relation needs two, the grid has {CELLS} cells), got {self.objects}"
            )
        _within("detail", self.detail, 2, len(FACTS))
        _within("colours", self.colours, 2, len(FACTS["colour"]))
        _within("clutter", self.clutter, 0, CLUTTER_LIMIT)
        _within("noise", self.noise, 0, NOISE_LIMIT)
        if self.pictures is not None and self.pictures < 1:
            raise ValueError(f"pictures must be at least 1, got {self.pictures}")
        if self.seed < 0:
            raise ValueError(f"seed must not be negative, got {self.seed}")
        if self.version != SCENES_VERSION:
            raise ValueError(
                f"this divse makes scenes version {SCENES_VERSION}, version {self.version} was "
                "asked for: install the release that made it, or regenerate"
            )

    @classmethod
    def of(cls, level: str = "default", **dials: Any) -> SceneOptions:
        """Take a named level, with some of its dials set otherwise."""
        if level not in LEVELS:
            raise ValueError(f"level must be one of {', '.join(LEVELS)}, got {level!r}")
        known = [field.name for field in fields(cls)]
        for name in dials:
            if name not in known:
                raise ValueError(
                    f"scenes has no option {name!r}; its options are {', '.join(known)} and level"
                )
        return cls(**LEVELS[level] | dials)

    @property
    def name(self) -> str:
        """What to cite: "scenes-v1", "scenes-v1-hard", "scenes-v1-hard+seed=1", ...

        Equal names mean equal bytes. Dials that differ from the level's follow behind a plus.
        """
        level, changed = min(
            ((level, self._changed(level)) for level in LEVELS),
            key=lambda choice: (len(choice[1]), choice[0] != "default"),
        )
        base = f"scenes-v{self.version}" + (f"-{level}" if level != "default" else "")
        return "+".join([base, *changed])

    def _changed(self, level: str) -> list[str]:
        """Dials that differ from a level's, as words."""
        usual = type(self)(**LEVELS[level])
        names = [f.name for f in fields(self) if getattr(self, f.name) != getattr(usual, f.name)]
        return [f"{name}={_word(getattr(self, name))}" for name in names]


def _within(name: str, value: int, low: int, high: int) -> None:
    if not low <= value <= high:
        raise ValueError(f"{name} must be {low} .. {high}, got {value}")


def _word(value: Any) -> str:
    return "-".join(map(str, value)) if isinstance(value, tuple) else str(value).lower()
