"""Implements lm-eval's model interface for any transformers model, and for artifacts of every kind.

This module imports lm-eval and is imported only when lm-eval is used.
"""

from collections.abc import Sequence
from copy import deepcopy
from itertools import groupby
from typing import Any

import numpy as np
import torch
from lm_eval.models.huggingface import HFLM
from torch import distributed, nn
from tqdm import tqdm  # type: ignore[import-untyped]
from transformers import LogitsProcessorList, PreTrainedTokenizerBase

from expunge.data.encode import Encoded
from expunge.errors import ExpungeError
from expunge.evaluation.engine import Engine
from expunge.evaluation.generate import Finite, own_generation
from expunge.evaluation.metrics.base import BROKEN
from expunge.evaluation.multiple_choice import score_answers
from expunge.evaluation.processes import dealt
from expunge.loading import load
from expunge.models.limits import check_embedded, end_tokens, padding, room
from expunge.models.load import DType, causal_model
from expunge.processes import is_main, join

QUESTIONS = 512
"""Number of questions encoded at a time, to bound memory with large benchmarks."""

ROWS = 16

Request = tuple[tuple[str, str] | None, list[int], list[int]]
"""Texts of context and continuation, and their tokens."""


class EngineLM(HFLM):  # type: ignore[misc]
    """A loaded model under lm-eval. Tokens, truncation, prompts and generation are lm-eval's (HFLM); log-probabilities come from
    the engine of this library, with two differences: answers that share a prompt read it once, and padding is always masked, so
    that hooks (guards) see real rows, and scores do not depend on the batch size.
    """

    def __init__(
        self, model: nn.Module, tokenizer: PreTrainedTokenizerBase, engine: Engine, *, room: int, batch_size: int | str = ROWS
    ) -> None:
        """room: tokens that the model takes; longer sequences lose their beginning. batch_size: rows generated together
        (`auto`: 16); log-probabilities do not depend on it."""
        # HFLM gives its tokenizer a pad token; the caller's stays as it is.
        own = deepcopy(tokenizer)
        if own.pad_token_id is not None and padding(model, own.pad_token_id) != own.pad_token_id:
            own.pad_token = own.eos_token  # the model has no embedding for its own
        rows = ROWS if str(batch_size).startswith("auto") else int(batch_size)
        super().__init__(pretrained=model, backend="causal", tokenizer=own, max_length=room, batch_size=rows)
        self.pretrained = causal_model(model).config.name_or_path
        self.engine = engine
        self.cut: set[str] = set()
        """Contexts whose beginning was cut off because the model takes no more tokens."""
        self.broken: set[str] = set()
        """Contexts after which the model's logits are not numbers: what lm-eval makes of these is no score."""
        self._asked: list[str] = []
        """The contexts that were encoded last, as `_model_generate` gets them."""
        self.refuses_broken = False
        """Whether a broken model is an error: under lm-eval's own command line there is no place for a reason beside a score."""

    @property
    def max_gen_toks(self) -> int:
        """Returns the length of an answer if the task does not give one; a short model keeps half its positions for the
        prompt."""
        return min(256, int(self.max_length) // 2)

    def tok_batch_encode(
        self, strings: list[str], padding_side: str = "left", left_truncate_len: int | None = None, truncation: bool = False
    ) -> Any:
        self._asked = list(strings)
        if left_truncate_len:
            self.cut |= {text for text in strings if len(self.tok_encode(text)) > left_truncate_len}
        return super().tok_batch_encode(strings, padding_side, left_truncate_len, truncation)

    def _loglikelihood_tokens(
        self, requests: Sequence[Request], disable_tqdm: bool = False, override_bs: int | None = None
    ) -> list[tuple[float, bool]]:
        """Returns the log-probability of each continuation, and whether each of its tokens is the most probable one."""
        together: dict[tuple[int, ...], list[int]] = {}
        for index, (_, context, _) in enumerate(requests):
            together.setdefault(tuple(context), []).append(index)
        questions = list(together.values())
        found: list[tuple[float, bool]] = [(0.0, False)] * len(requests)
        with tqdm(total=len(requests), disable=disable_tqdm or not is_main(), desc="log-likelihoods") as bar:
            for start in range(0, len(questions), QUESTIONS):
                some = questions[start : start + QUESTIONS]
                self._answer(requests, some, found)
                bar.update(sum(map(len, some)))
        self._check()
        return found

    def _model_generate(self, context: Any, max_length: int, stop: list[str], **generation_kwargs: Any) -> Any:
        """HFLM's, with the end tokens of this library and nothing that the model's authors recommend."""
        check_embedded(self.engine.model, context.tolist())
        ends = end_tokens(self.engine.model, (self.eot_token_id,))
        finite = Finite(len(context))
        with own_generation(self.engine.model, self.tokenizer.pad_token_id, ends):
            written_BT = super()._model_generate(
                context, max_length, stop, logits_processor=LogitsProcessorList([finite]), **generation_kwargs
            )
        self.broken |= {self._asked[row] for row in finite.broken()}
        # HFLM knows one end token; text after another one would be read as the answer's.
        ended_BT = torch.isin(written_BT, torch.tensor(ends, device=written_BT.device))
        ended_BT[:, : context.shape[1]] = False
        return written_BT.masked_fill(ended_BT.cumsum(dim=1) > 0, self.eot_token_id)

    def generate_until(self, requests: Sequence[Any], disable_tqdm: bool = False) -> list[str]:
        """Generates answers in HFLM's batches (similar lengths, same settings), shared by the processes."""
        asked = [request.args for request in requests]
        order = sorted(range(len(asked)), key=lambda i: (str(asked[i][1]), -len(self.tok_encode(asked[i][0])), asked[i][0]))
        alike = [list(same) for _, same in groupby(order, key=lambda i: str(asked[i][1]))]
        batches = [same[at : at + self.batch_size] for same in alike for at in range(0, len(same), self.batch_size)]
        texts = [""] * len(asked)
        with tqdm(total=len(asked), disable=disable_tqdm or not is_main(), desc="answers") as bar:

            def write(batch: Sequence[int]) -> tuple[list[str], set[str], set[str]]:
                some = super(EngineLM, self).generate_until([requests[i] for i in batch], disable_tqdm=True)
                bar.update(len(batch))
                contexts = {asked[i][0] for i in batch}
                return some, contexts & self.cut, contexts & self.broken

            for batch, (written, cut, broken) in zip(batches, dealt(self.engine.model, batches, write), strict=True):
                self.cut |= cut
                self.broken |= broken
                for i, text in zip(batch, written, strict=True):
                    texts[i] = text
        self._check()
        return texts

    def _check(self) -> None:
        if self.refuses_broken and self.broken:
            raise ExpungeError(f"{BROKEN} (after {len(self.broken)} contexts of lm-eval); give another model")

    def _answer(self, requests: Sequence[Request], questions: Sequence[Sequence[int]], found: list[tuple[float, bool]]) -> None:
        engine = self.engine
        # Whole texts (perplexity) come without their words and have logits everywhere; choices have few.
        most = engine.max_tokens if requests[questions[0][0]][0] is None else engine.shared_tokens
        encoded = [[self._fitted(requests[index]) for index in question] for question in questions]
        stats = score_answers(
            engine.model, encoded, engine.pad_id, max_tokens=most, max_rows=engine.shared_rows, max_logits=engine.max_logits
        )
        for question, answers in zip(questions, stats, strict=True):
            for index, tokens in zip(question, answers, strict=True):
                found[index] = (float(tokens.logp.sum(dtype=np.float64)), bool(tokens.hit.all()))
                texts = requests[index][0]
                if texts is not None:
                    if np.isnan(tokens.logp).any():
                        self.broken.add(texts[0])
                    self.cache_hook.add_partial("loglikelihood", texts, found[index])

    def _fitted(self, request: Request) -> Encoded:
        """Cuts a sequence that is too long at the beginning. The last token is only predicted, so one more than the room
        fits."""
        texts, context, continuation = request
        if not context or not 0 < len(continuation) <= self.max_length:
            raise ExpungeError(
                f"lm-eval asks for {len(continuation)} tokens after {len(context)} of context, and the model takes 1 to "
                f"{self.max_length} after at least 1; leave this task out, or look at how its texts become tokens"
            )
        ids = (*context, *continuation)[-self.max_length - 1 :]
        if texts is not None and len(ids) < len(context) + len(continuation):
            self.cut.add(texts[0])
        return Encoded(ids, len(ids) - len(continuation), False)


class ExpungeLM(EngineLM):
    """The model type `expunge` of lm-eval: `--model expunge --model_args artifact=RUN_OR_ARTIFACT`.

    artifact   a run, an artifact (weights, adapter or guard), a model folder or a hub id: all that `expunge.load` takes
    dtype      auto (as stored), float32, bfloat16 or float16
    base       guard: the base model, where it is not at its recorded path any more; force attaches it to another one
    """

    def __init__(
        self,
        artifact: str,
        dtype: DType = "auto",
        device: str | None = None,
        batch_size: int | str = ROWS,
        max_batch_size: int | None = None,
        max_length: int | None = None,
        revision: str | None = None,
        trust_remote_code: bool = False,
        base: str | None = None,
        force: bool = False,
    ) -> None:
        """lm-eval's command line passes `device` (cuda:0, even if not given) and `max_batch_size` to every model type."""
        join()
        if device is not None and device.startswith("cuda") and (distributed.is_initialized() or not torch.cuda.is_available()):
            device = None  # of several processes, each has its own
        model, tokenizer = load(
            artifact,
            dtype=dtype,
            device=device,
            revision=revision,
            trust_remote_code=trust_remote_code,
            base=base,
            force=force,
        )
        longest = max_length or room(model)
        super().__init__(model, tokenizer, Engine(model, pad(tokenizer)), room=longest, batch_size=batch_size)
        self.pretrained = artifact
        self.refuses_broken = True


def pad(tokenizer: PreTrainedTokenizerBase) -> int:
    """A token for padding; it is masked, so that any will do."""
    return next((int(i) for i in (tokenizer.pad_token_id, tokenizer.eos_token_id) if isinstance(i, int)), 0)
