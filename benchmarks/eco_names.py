"""What names alone flag on TOFU, without a gate: forget questions, paraphrases, beginnings of answers, questions about others.

    python benchmarks/eco_names.py --data DIR [--retain N]

Names are learned as in embedding_corruption from a forget set and half of N retain questions, the other half being left to
calibrate on. The other retain questions are those of retain99, retain95 and retain90 that names were not learned from. No model.
"""

import argparse
import json
from collections.abc import Sequence
from pathlib import Path

import torch

from expunge.data.corpora.tofu import read_tofu
from expunge.guarding.embedding_corruption.kinds import Level
from expunge.guarding.embedding_corruption.subjects import learned
from expunge.guarding.embedding_corruption.training_set import general_negatives


def column(file: Path, name: str) -> list[str]:
    return [json.loads(line)[name] for line in file.read_text(encoding="utf-8").splitlines()]


def beginning(text: str) -> str:
    words = text.split()
    return " ".join(words[: max(1, len(words) // 2)])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--retain", type=int, default=1000)
    args = parser.parse_args()
    data = args.data / "tofu" if (args.data / "tofu").is_dir() else args.data
    levels: tuple[Level, ...] = ("names", "parts")
    print("| forget set | mentions | names, parts | forget | paraphrased | first half of answers | retain | authors | world |")
    print("| --- | --- | ---: |" + " ---: |" * 6)
    for part, kept in (("01", "99"), ("05", "95"), ("10", "90")):
        forget, retain = read_tofu(data, f"forget{part}"), read_tofu(data, f"retain{kept}")
        order = torch.randperm(len(retain), generator=torch.Generator().manual_seed(0)).tolist()
        trained = [retain[i] for i in order[: args.retain // 2]]
        general = general_negatives("general", forget, trained)
        seen = {e.prompt for e in trained}
        asked: dict[str, Sequence[str]] = {
            "forget": [str(e.prompt) for e in forget],
            "paraphrased": column(data / f"forget{part}_perturbed.jsonl", "paraphrased_question"),
            "answers": [beginning(e.response) for e in forget],
            "retain": [str(e.prompt) for e in retain if e.prompt not in seen],
            "authors": column(data / "real_authors_perturbed.jsonl", "question"),
            "world": column(data / "world_facts_perturbed.jsonl", "question"),
        }
        for level in levels:
            found = learned(level, forget, trained, general.trained, 0.05)
            shares = " | ".join(f"{sum(map(found.are_in, texts)) / len(texts):.4f}" for texts in asked.values())
            print(f"| forget{part} | {level} | {len(found.names)}, {len(found.parts)} | {shares} |", flush=True)


if __name__ == "__main__":
    main()
