"""`expunge compare BEFORE AFTER [--prompt TEXT ... | --prompts FILE]`."""

import json
import sys
from typing import TYPE_CHECKING, Annotated

from pydantic import ConfigDict, Field
from tyro.conf import Positional, arg

from expunge.described import Described
from expunge.errors import ExpungeError
from expunge.models.load import DType
from expunge.records import Seed

if TYPE_CHECKING:
    from expunge.data.example import Example
    from expunge.evaluation.side_by_side import Compared, Said


class Compare(Described):
    """Answers of two models or artifacts side by side, and how probable each finds the expected answer."""

    model_config = ConfigDict(frozen=True)

    before: Positional[str]
    """A run, an artifact, a model folder or a hub id."""
    after: Positional[str]
    """The run, artifact, model folder or hub id to compare it with."""
    prompt: tuple[str, ...] = ()
    """Prompts, each as one argument."""
    prompts: str | None = None
    """Data file with prompts; where a row has a response, its probability is compared too."""
    sample: bool = False
    """Draw one answer by nucleus sampling instead of the greedy one."""
    seed: Seed = 0
    """Seed of the draws; a draw depends only on it and the prompt."""
    top_p: float = Field(0.9, gt=0, le=1)
    """Share of the probability that is drawn from."""
    max_new_tokens: int = Field(64, ge=1)
    """Longest answer."""
    limit: int | None = Field(None, ge=1)
    """Only the first N prompts of the file."""
    dtype: DType = "auto"
    """auto (as stored), float32, bfloat16 or float16."""
    as_json: Annotated[bool, arg(name="json")] = False
    """Print one JSON document instead of text."""


def run(flags: Compare) -> None:
    from expunge.evaluation.nucleus import Nucleus
    from expunge.evaluation.side_by_side import compare

    draw = Nucleus(top_p=flags.top_p, seed=flags.seed) if flags.sample else None
    found = compare(flags.before, flags.after, asked(flags), draw=draw, max_new_tokens=flags.max_new_tokens, dtype=flags.dtype)
    print(json_text(flags, found) if flags.as_json else plain_text(flags, found))


def asked(flags: Compare) -> list["Example"]:
    """Returns the prompts of the command line, then those of the file. Raises ExpungeError for raw texts, which have no
    prompt."""
    from expunge.data.example import Example
    from expunge.data.read import read_examples

    examples = [Example(prompt, "") for prompt in flags.prompt]
    if flags.prompts is not None:
        rows = [e for e in read_examples(flags.prompts) if e.prompt is not None]
        if not rows:
            raise ExpungeError(f"{flags.prompts} holds raw texts without prompts; give rows with `prompt` (and `response`)")
        examples += rows[: flags.limit]
    if not examples:
        raise ExpungeError("there is nothing to ask; give --prompt TEXT, or --prompts FILE with a column `prompt`")
    return examples


def json_text(flags: Compare, found: list["Compared"]) -> str:
    rows = [{**c._asdict(), "before": c.before._asdict(), "after": c.after._asdict(), "change": c.change} for c in found]
    plain = (sys.stdout.encoding or "").lower() not in ("utf-8", "utf8")
    return json.dumps({"before": flags.before, "after": flags.after, "prompts": rows}, indent=1, ensure_ascii=plain)


def plain_text(flags: Compare, found: list["Compared"]) -> str:
    """Formats each prompt with both answers below it, and a last line over all of them."""
    lines = []
    for c in found:
        lines += [c.prompt, *([f"  expected  {c.expected}"] if c.expected else [])]
        lines += [f"  before    {_said(c.before)}", f"  after     {_said(c.after)}"]
        lines += [f"  change    {c.change:+.3f} in the probability of the expected answer"] if c.change is not None else []
        lines.append("")
    changes = [c.change for c in found if c.change is not None]
    acted = [c.after.acted for c in found if c.after.acted is not None]
    same = sum(c.before.answer == c.after.answer for c in found)
    whole = [f"{len(found)} prompts: {same} answered alike"]
    whole += [f"mean change in probability {sum(changes) / len(changes):+.3f}"] if changes else []
    whole += [f"the guard acted on {sum(acted)}"] if acted else []
    return "\n".join([*lines, f"{', '.join(whole)}  (before: {flags.before}, after: {flags.after})"])


def _said(said: "Said") -> str:
    text = said.answer or "(no answer)"
    notes = [f"p = {said.probability:.3f}"] if said.probability is not None else []
    notes += [] if said.acted is None else ["the guard acted" if said.acted else "the guard let it pass"]
    notes += [f"corrupted: {', '.join(token.strip() for token, _ in said.corrupted)}"] if said.corrupted else []
    return f"{text}  [{', '.join(notes)}]" if notes else text
