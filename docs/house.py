"""Writes the tree of the README: every file of src/expunge with the first phrase of its docstring.

python docs/house.py            rewrites the tree
python docs/house.py --check    exit code 1 where the README says something else than the files do
"""

import ast
import re
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
SOURCE = ROOT / "src" / "expunge"
README = ROOT / "README.md"
BEGIN, END = "<!-- every file: python docs/house.py -->\n", "<!-- end of every file -->\n"
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


def main() -> int:
    text = README.read_text(encoding="utf-8")
    before, rest = text.split(BEGIN)
    after = rest.split(END)[1]
    lines = "\n".join(tree(SOURCE, 1))
    wanted = f"{before}{BEGIN}```\nsrc/expunge/\n{lines}\n```\n{END}{after}"
    if "--check" in sys.argv[1:]:
        if text != wanted:
            print("the README's tree is not that of the files: python docs/house.py", file=sys.stderr)
        return int(text != wanted)
    README.write_text(wanted, encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
