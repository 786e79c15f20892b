"""Resolves mergekit's parameters for one tensor: levels, filters and gradients."""

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from expunge.errors import ExpungeError, nearest
from expunge.models.load import DType

WITHOUT_EFFECT = {"int8_mask"}
"""Parameters of mergekit that only change memory use."""

Setting = Any
"""A number, a list of numbers (a gradient over the layers), or a list of {filter, value}."""
Level = Mapping[str, Setting]


class ModelEntry(NamedTuple):
    path: str
    levels: tuple[Level, ...]
    """Settings for this model, in order of precedence."""


class MergekitConfig(NamedTuple):
    """The file, with slices turned into models."""

    method: str
    base: str
    entries: tuple[ModelEntry, ...]
    """Without the base, unless the method counts it."""
    shared: tuple[Level, ...]
    dtype: DType


class Parameters:
    """The parameters of one tensor, by mergekit's rules: the innermost level with a value wins; a gradient is interpolated
    over the layers; tensors outside of layers take its first value."""

    def __init__(self, file: Path, recipe: MergekitConfig, name: str, layers: int) -> None:
        self.file, self.recipe, self.name = file, recipe, name
        layer = re.search(r"\.(\d+)\.", name)
        self.depth = 0.0 if layer is None else int(layer[1]) / (layers - 1) if layers > 1 else 1.0
        self.asked: set[str] = set(WITHOUT_EFFECT)

    def one(self, parameter: str, default: float | None) -> float:
        return self._number(parameter, self.recipe.shared, default)

    def flag(self, parameter: str, default: bool) -> bool:
        found = self._find(parameter, self.recipe.shared, default)
        return str(found).lower() in ("true", "yes", "on", "1", "y", "t") if isinstance(found, str) else bool(found)

    def each(self, parameter: str, default: float | None) -> tuple[float, ...]:
        """Returns one value per model. Raises ExpungeError if there is neither a value nor a default."""
        return tuple(self._number(parameter, entry.levels + self.recipe.shared, default) for entry in self.recipe.entries)

    def _number(self, parameter: str, levels: Sequence[Level], default: float | None) -> float:
        try:
            return float(self._find(parameter, levels, default))
        except (TypeError, ValueError, KeyError) as error:
            said = next((level[parameter] for level in levels if parameter in level), None)
            raise ExpungeError(
                f"{self.file}: the parameter {parameter} is {said!r}, which is no number and no list of them; correct it"
            ) from error

    def _find(self, parameter: str, levels: Sequence[Level], default: Setting) -> Setting:
        self.asked.add(parameter)
        for level in levels:
            if parameter in level and (found := self._resolve(level[parameter])) is not None:
                return found
        if default is None:
            raise ExpungeError(f"{self.file}: the parameter {parameter} is missing for {self.name or 'the models'}; add it")
        return default

    def _resolve(self, setting: Setting) -> Setting:
        if isinstance(setting, dict):
            setting = [setting]
        if not isinstance(setting, list):
            return setting
        if setting and all(isinstance(part, dict) for part in setting):
            for part in setting:
                if part.get("filter") in (None, "*") or (self.name and part["filter"] in self.name):
                    return self._resolve(part["value"])
            return None
        if not setting:
            return None
        place = self.depth * (len(setting) - 1)
        before = int(place)
        after = min(before + 1, len(setting) - 1)
        share = place - before
        return (1 - share) * float(setting[before]) + share * float(setting[after])

    def refuse_rescale(self) -> None:
        if self.flag("rescale", False):
            raise ExpungeError(f"{self.file}: {self.recipe.method} with rescale is not supported; write rescale: false")

    def check(self) -> None:
        """Raises ExpungeError for a parameter that was not read, since it would have no effect."""
        said = {
            key for level in (*self.recipe.shared, *(level for e in self.recipe.entries for level in e.levels)) for key in level
        }
        if unknown := sorted(said - self.asked):
            raise ExpungeError(
                f"{self.file}: {self.recipe.method} has no parameter '{unknown[0]}'{nearest(unknown[0], self.asked)}; remove it"
            )
