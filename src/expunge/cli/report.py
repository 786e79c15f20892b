"""`expunge report DIR... --out DIR`."""

from pathlib import Path

from pydantic import ConfigDict
from tyro.conf import Positional

from expunge.described import Described


class Report(Described):
    """Write one page over any number of runs: tables with intervals, forgetting against side effects, charts of task groups,
    parts of composed runs, curves, answers, and claims."""

    model_config = ConfigDict(frozen=True)

    runs: Positional[tuple[Path, ...]]
    """Folders of runs, of evaluations, or of probes with --analysis; those called `original` and `gold` that contain only an
    evaluation are taken as the reference models."""
    out: Path
    """Folder for index.html, report.md, table.tex, report.json, *.svg, and for the lab summary.json."""
    title: str | None = None
    """Heading of the page."""
    original: Path | None = None
    """Evaluation of the model before unlearning."""
    gold: Path | None = None
    """Evaluation of a model that never saw the forget set."""
    show_forget_text: bool = False
    """Quote texts of the forget set, if the samples contain them."""
    overwrite: bool = False
    """Write into a folder that is not empty."""


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
