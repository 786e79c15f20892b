"""`expunge report DIR... --out DIR`."""

from pathlib import Path

from pydantic import BaseModel, ConfigDict
from tyro.conf import Positional


class Report(BaseModel):
    """Any number of runs into one page: tables with intervals, what is gone against what it cost, groups side by side, parts of
    composed runs, curves, answers, and what is claimed."""

    model_config = ConfigDict(frozen=True, use_attribute_docstrings=True)

    runs: Positional[tuple[Path, ...]]
    """Folders of runs, of evaluations, or of probes with --analysis; those called `original` and `gold` that hold only an
    evaluation are taken for the reference models."""
    out: Path
    """Gets index.html, report.md, table.tex, report.json, *.svg, and for the lab summary.json."""
    title: str | None = None
    """Heading of the page."""
    original: Path | None = None
    """Evaluation of the model before unlearning."""
    gold: Path | None = None
    """Evaluation of a model that never saw the forget set."""
    show_forget_text: bool = False
    """Quote texts of what was to be forgotten, where the samples hold them."""
    overwrite: bool = False
    """Write into a folder that holds something already."""


def run(args: Report) -> None:
    from expunge.report import report

    page = report(
        args.runs,
        args.out,
        title=args.title,
        original=args.original,
        gold=args.gold,
        show_forget_text=args.show_forget_text,
        overwrite=args.overwrite,
    )
    print(f"report: {page}")
