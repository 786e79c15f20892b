"""Finds recipes: whole runs as YAML, one per published setting, and one per method for the lab."""

from pathlib import Path
from typing import Any

from expunge.errors import ExpungeError, nearest

_HERE = Path(__file__).parent


def recipes_folder() -> Path:
    """Returns recipes/ of the source tree, or its copy inside an installed package."""
    inside = _HERE / "recipes"
    return inside if inside.is_dir() else _HERE.parents[1] / "recipes"


def recipe(name: str) -> dict[str, Any]:
    """Reads the recipe `lab/npo`, `tofu`, ... as plain data. Raises ExpungeError, with the nearest name, for an unknown one."""
    import yaml

    folder = recipes_folder()
    path = folder / f"{name}.yaml"
    if not path.is_file():
        known = [str(p.relative_to(folder).with_suffix("")) for p in folder.rglob("*.yaml")]
        raise ExpungeError(f"there is no recipe '{name}'{nearest(name, known)} in {folder}; its YAML files are the recipes")
    value: dict[str, Any] = yaml.safe_load(path.read_text(encoding="utf-8"))
    return value
