"""Writes docs/house.md: every file of src/expunge with the first sentence of its docstring.

python docs/house.py            rewrites the page
python docs/house.py --check    exit code 1 where the page says something else than the files do
"""

import ast
import re
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
SOURCE = ROOT / "src" / "expunge"
PAGE = ROOT / "docs" / "house.md"
WIDTH = 26


def phrase(path: Path) -> str:
    """The first sentence of the docstring, on one line and without its full stop."""
    said = ast.get_docstring(ast.parse(path.read_text(encoding="utf-8"))) or ""
    first = " ".join(said.split("\n\n")[0].split())
    return re.split(r"(?<!\.)\.\s+(?=[A-Z])", first)[0].rstrip(".")


def tree(folder: Path, depth: int = 0) -> list[str]:
    """Files of a folder first, then its folders; `__init__.py` speaks for its folder."""
    inner = "  " * depth
    lines = []
    for path in sorted(folder.glob("*.py")):
        if path.name not in ("__init__.py", "__main__.py"):
            lines.append(f"{inner}{path.name:<{WIDTH - len(inner)}} {phrase(path)}")
    for path in sorted(p for p in folder.iterdir() if (p / "__init__.py").is_file()):
        lines.append(f"{inner}{path.name + '/':<{WIDTH - len(inner)}} {phrase(path / '__init__.py')}".rstrip())
        lines += tree(path, depth + 1)
    return lines


def page() -> str:
    lines = "\n".join(tree(SOURCE, 1))
    return f"# Every file\n\nWritten by `python docs/house.py`.\n\n```\nsrc/expunge/\n{lines}\n```\n"


def main() -> int:
    wanted = page()
    if "--check" in sys.argv[1:]:
        differs = not PAGE.is_file() or PAGE.read_text(encoding="utf-8") != wanted
        if differs:
            print("docs/house.md is not what the files say: python docs/house.py", file=sys.stderr)
        return int(differs)
    PAGE.write_text(wanted, encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
