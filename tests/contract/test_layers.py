"""Imports go down the house only, and nothing heavy is imported where it must not be."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

import expunge

SOURCE = Path(expunge.__file__).parent
LAYERS = [
    ["errors", "late", "records", "described"],
    ["progress", "memory", "processes", "folders", "devices"],
    ["data"],
    ["models"],
    [
        f"guarding/{name}"
        for name in (
            "random_bits",
            "forward_pass",
            "full_batch_view",
            "query",
            "session",
            "abstain",
            "instruct",
            "embedding_corruption",
        )
    ],
    ["methods"],
    [
        f"training/{name}"
        for name in (
            "settings",
            "pairs",
            "renamed",
            "data",
            "reference",
            "batches",
            "checkpoints",
            "adapters",
            "weights",
            "limits",
            "way",
            "stopping",
            "alternates",
            "hardening",
            "disruption",
            "gradients",
            "sharing",
            "state",
            "step_log",
            "loop",
        )
    ]
    + ["guarding/canaries", "guarding/life"],
    ["artifact"],
    ["loading"],
    ["merging"],
    ["spec", "recipes", "start"],
    ["runner", "run_folder", "self_check", "guarding/published"],
    ["training", "editing", "guarding", "composing"],
    ["run"],
    ["evaluation"],
    ["attacks"],
    ["report"],
    ["lab"],
    ["quickstart", "probing", "asking"],
    ["api"],
    ["cli", "__init__", "__main__"],
]
"""Bottom first: packages, and files of packages that lie in another layer. A file may import from its own layer and from those
before it."""

LEVEL = {name: i for i, layer in enumerate(LAYERS) for name in layer}
FILES = sorted(SOURCE.rglob("*.py"))


def part(module: str) -> str:
    """The entry of LAYERS that a module, `training/loop`, is of."""
    return module if module in LEVEL else module.split("/")[0]


def imports(path: Path) -> list[str]:
    """Parts of the house that a file imports, wherever in it (a late import is an import too)."""
    found = []
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        names = [a.name for a in node.names] if isinstance(node, ast.Import) else []
        if isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: relative import"
            names = [f"{node.module}.{a.name}" for a in node.names]
        found += [part("/".join(n.split(".")[1:3])) for n in names if n.startswith("expunge.")]
    return [n for n in found if n in LEVEL]


@pytest.mark.parametrize("path", FILES, ids=lambda p: str(p.relative_to(SOURCE)))
def test_imports_go_downward(path: Path) -> None:
    mine = part(path.relative_to(SOURCE).as_posix().removesuffix(".py"))
    assert mine in LEVEL, f"{mine} has no layer: give it one in LAYERS"
    assert not [n for n in imports(path) if LEVEL[n] > LEVEL[mine]]


def module_of(path: Path) -> str:
    return ".".join(["expunge", *path.relative_to(SOURCE).with_suffix("").parts]).removesuffix(".__init__")


MODULES = {module_of(path): path for path in FILES if path != SOURCE / "__init__.py"}
"""All but the package itself, whose public names are imported late and only by its users."""


def modules_imported(path: Path) -> set[str]:
    """Modules that a file imports anywhere in it: late imports and those for types alone count, for they hide a circle."""
    names: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            names |= {a.name for a in node.names}
        if isinstance(node, ast.ImportFrom):
            inner = {f"{node.module}.{a.name}" for a in node.names} & MODULES.keys()
            names |= inner or {node.module or ""}
    return names & MODULES.keys()


def circles(graph: dict[str, set[str]]) -> list[list[str]]:
    """Every group of modules that import one another, directly or over others (Tarjan's strongly connected components)."""
    index: dict[str, int] = {}
    low: dict[str, int] = {}
    stack: list[str] = []
    found: list[list[str]] = []

    def visit(node: str) -> None:
        index[node] = low[node] = len(index)
        stack.append(node)
        for other in sorted(graph[node]):
            if other not in index:
                visit(other)
            if other in stack:
                low[node] = min(low[node], low[other])
        if low[node] == index[node]:
            group = stack[stack.index(node) :]
            del stack[stack.index(node) :]
            if len(group) > 1 or node in graph[node]:
                found.append(sorted(group))

    for node in graph:
        if node not in index:
            visit(node)
    return found


def test_circles_are_found() -> None:
    assert circles({"a": {"b"}, "b": {"c"}, "c": {"b"}, "d": {"a"}, "e": {"e"}}) == [["b", "c"], ["e"]]


def test_no_modules_import_one_another() -> None:
    """Inside a package and between packages; layers alone would let files of one layer run in circles."""
    graph = {name: modules_imported(path) - {name} for name, path in MODULES.items()}
    assert not circles(graph)


@pytest.mark.parametrize(
    "module", ["expunge", "expunge.cli", "expunge.errors", "expunge.records", "expunge.folders", "expunge.report"]
)
def test_light_modules_import_no_torch(module: str) -> None:
    code = f"import sys, {module}; sys.exit(any(m in sys.modules for m in ('torch', 'transformers', 'sklearn', 'datasets')))"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


@pytest.mark.parametrize("module", ["expunge.merging", "expunge.merging.mergekit", "expunge.methods"])
def test_no_modeling_code_is_imported_where_no_model_is_run(module: str) -> None:
    """transformers' models and PEFT take two seconds and 130 MB: more than a merge that copies most tensors."""
    code = f"import sys, {module}; sys.exit(any(m in sys.modules for m in ('transformers', 'peft', 'torch.distributed.tensor')))"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_no_file_calls_what_the_house_forbids() -> None:
    """No pickle, no eval, no exec, no torch.load: safetensors and JSON only. The restricted importer is the one exception."""
    for path in FILES:
        tree = ast.parse(path.read_text(encoding="utf-8"))
        for node in ast.walk(tree):
            if isinstance(node, ast.Call) and isinstance(node.func, ast.Name):
                allowed = path.name == "sandbox_child.py"  # runs generated code, in a process without rights, only when asked
                assert allowed or node.func.id not in ("eval", "exec"), f"{path}:{node.lineno}"
            if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute) and isinstance(node.func.value, ast.Name):
                assert (node.func.value.id, node.func.attr) != ("torch", "load"), f"{path}:{node.lineno}"
            if isinstance(node, ast.Import) and path.name != "published.py":
                assert all(a.name != "pickle" for a in node.names), f"{path}:{node.lineno}"
