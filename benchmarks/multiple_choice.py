"""Four answers to a question with a 300-token prompt: one shared prompt against four full passes, in CPU time, in one run.

    python benchmarks/multiple_choice.py [--questions N] [--answer N]

A random Llama (width 256, 6 layers, 8,000 words), prompts of 280 to 320 tokens, one thread. The two ways take turns, so that
whatever else the machine does falls on both. The full passes have batches of like length and logits at answer positions only,
as the rest of the evaluation has; `naive` is the reading without either: each answer alone, logits everywhere. `tokens` is the
ratio of the tokens that the model reads, the most that sharing can give against such full passes: 4 for letters, and less the
longer the answers are, for these are nobody's to share. Goal: at least 3.5.
"""

import argparse
import statistics
import time
from collections.abc import Callable

import numpy as np
import torch
from transformers import LlamaConfig, LlamaForCausalLM

from expunge.data.encode import Encoded
from expunge.evaluation.engine import Engine

torch.set_num_threads(1)

WORDS = 8000
Sums = np.ndarray
"""Sum of log-probabilities, questions x 4."""


def model() -> LlamaForCausalLM:
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=WORDS,
        hidden_size=256,
        intermediate_size=768,
        num_hidden_layers=6,
        num_attention_heads=4,
        num_key_value_heads=4,
        initializer_range=0.1,
    )
    return LlamaForCausalLM(config).eval()


def questions(count: int, answer: int) -> list[list[Encoded]]:
    """Answers of about so many tokens; 1 for letters."""
    rng = np.random.default_rng(0)

    def tokens(length: int) -> tuple[int, ...]:
        return tuple(rng.integers(3, WORDS, size=length).tolist())

    def question(prompt: tuple[int, ...]) -> list[Encoded]:
        lengths = [max(1, answer + int(rng.integers(-answer // 4, answer // 4 + 1))) for _ in range(4)]
        return [Encoded((*prompt, *tokens(length)), len(prompt), False) for length in lengths]

    return [question(tokens(int(rng.integers(280, 321)))) for _ in range(count)]


def shared(net: LlamaForCausalLM, asked: list[list[Encoded]]) -> Sums:
    found = Engine(net, 0).score_answers(asked)
    return np.array([[stats.logp.sum(dtype=np.float64) for stats in answers] for answers in found])


def full(net: LlamaForCausalLM, asked: list[list[Encoded]]) -> Sums:
    found = Engine(net, 0).score([answer for answers in asked for answer in answers])
    return np.array([stats.logp.sum(dtype=np.float64) for stats in found]).reshape(-1, 4)


@torch.inference_mode()
def naive(net: LlamaForCausalLM, asked: list[list[Encoded]]) -> Sums:
    def one(row: Encoded) -> float:
        ids = torch.tensor([row.ids])
        logp = net(ids).logits.log_softmax(dim=-1)[0, :-1].gather(1, ids[0, 1:, None])[:, 0]
        return float(logp[row.answer_start - 1 :].sum())

    return np.array([[one(answer) for answer in answers] for answers in asked])


def read(asked: list[list[Encoded]], *, shared: bool) -> int:
    """Tokens that the model reads: of each answer all (full passes), or the prompt once and the ends."""
    if not shared:
        return sum(len(row.ids) for answers in asked for row in answers)
    return sum(answers[0].answer_start + sum(len(row.ids) - 1 - row.answer_start for row in answers) for answers in asked)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--questions", type=int, default=12)
    parser.add_argument("--rounds", type=int, default=5)
    flags = parser.parse_args()
    net = model()
    ways: dict[str, Callable[[LlamaForCausalLM, list[list[Encoded]]], Sums]] = {"shared": shared, "full": full, "naive": naive}
    print(f"{'answers':<22}{'way':<10}{'CPU ms a question':>18}{'ratio':>8}{'same choice':>13}{'largest difference':>20}")
    for name, length in (("letters (1 token)", 1), ("8 tokens each", 8), ("16 tokens each", 16)):
        asked = questions(flags.questions, length)
        times: dict[str, list[float]] = {way: [] for way in ways}
        sums: dict[str, Sums] = {}
        for turn in range(flags.rounds + 1):
            for way, run in ways.items():
                began = time.process_time()
                sums[way] = run(net, asked)
                if turn:
                    times[way].append((time.process_time() - began) / flags.questions)
        base = statistics.median(times["shared"])
        for way, values in times.items():
            same = int((sums[way].argmax(axis=1) == sums["shared"].argmax(axis=1)).sum())
            gap = np.abs(sums[way] - sums["shared"]).max()
            ms, ratio = 1000 * statistics.median(values), statistics.median(values) / base
            print(f"{name:<22}{way:<10}{ms:>18.1f}{ratio:>8.2f}{same:>8} / {flags.questions:<2}{gap:>20.1e}")
        print(f"{'':<22}{'tokens':<10}{'':>18}{read(asked, shared=False) / read(asked, shared=True):>8.2f}")


if __name__ == "__main__":
    main()
