"""Studies of embedding corruption beyond scores: what a corrupted prompt still tells the model.

Shape suffixes: N prompts, T tokens of a prompt, D width, V vocabulary.
"""

from collections.abc import Sequence

import numpy as np
import torch
from sklearn.linear_model import LogisticRegression
from torch import Tensor, nn

from expunge.data.encode import Encoder, decoded
from expunge.errors import ExpungeError
from expunge.evaluation.generate import generate, writing, written
from expunge.evaluation.rouge import rouge
from expunge.guarding.embedding_corruption.corrupter import corrupted
from expunge.guarding.life import Guard
from expunge.guarding.session import unguarded
from expunge.methods.guarding.embedding_corruption import EmbeddingCorruption
from expunge.models.embeddings import embedding_matrix
from expunge.models.load import causal_model

Ids = tuple[int, ...]
REPEAT = "Repeat the following question word for word, and write nothing else: {question}"


@torch.no_grad()
def corrupted_tokens(model: nn.Module, ids: Ids) -> tuple[tuple[str, str], ...]:
    """Returns the tokens of a prompt that the model's guard corrupts, each with the token of the vocabulary whose embedding has
    the largest cosine with the corrupted one (the token itself, where the corruption leaves it readable).

    Empty without a guard of embedding corruption, and for a prompt that it lets pass.
    """
    guard = vars(causal_model(model)).get("expunge_guard")
    if not isinstance(guard, Guard) or not isinstance(guard.method, EmbeddingCorruption):
        return ()
    decision = guard.method.judge(model, guard.state, guard.encoder).decision(ids)
    if not decision.chosen:
        return ()
    embed, weight_VD = causal_model(model).get_input_embeddings(), embedding_matrix(model)
    with unguarded():
        table_VD = embed(torch.arange(len(weight_VD), device=weight_VD.device)).float()
        read_TD = corrupted(guard.method.edit(guard.state), decision, embed(torch.tensor(ids, device=weight_VD.device)))
    chosen_ND = read_TD[list(decision.chosen)].float()
    near_N = (nn.functional.normalize(chosen_ND, dim=1) @ nn.functional.normalize(table_VD, dim=1).T).argmax(dim=1)
    tokenizer = guard.encoder.tokenizer
    pairs = zip(decision.chosen, near_N.tolist(), strict=True)
    return tuple((str(tokenizer.decode([ids[i]])), str(tokenizer.decode([near]))) for i, near in pairs)


@torch.no_grad()
def last_logits(model: nn.Module, prompts: Sequence[Ids]) -> Tensor:
    """Computes the logits after each prompt over the whole vocabulary, float32 [N, V]; the model's guard acts."""
    root = causal_model(model)
    rows = [root(input_ids=torch.tensor([ids], device=root.device), use_cache=False).logits[0, -1] for ids in prompts]
    return torch.stack(rows).float().cpu()


def linear_probe(logits_NV: Tensor, answer_N: Sequence[int]) -> float:
    """Computes the accuracy with which the right choice is read from the logits after the question, by logistic regression
    trained on the first half and tested on the second. Near chance, no linear reading of the model's output finds the answer.

    Source: the probe of ECO (arXiv 2406.07933). Raises ExpungeError if the first half has one answer only.
    """
    half = len(answer_N) // 2
    answers = np.asarray(answer_N)
    if len(set(answers[:half].tolist())) < 2:
        raise ExpungeError(f"the first {half} questions have one and the same answer; give more questions, in mixed order")
    probe = LogisticRegression(max_iter=1000).fit(logits_NV[:half].numpy(), answers[:half])
    return float((probe.predict(logits_NV[half:].numpy()) == answers[half:]).mean())


def repeat_test(model: nn.Module, encoder: Encoder, questions: Sequence[str], *, max_new_tokens: int = 64) -> list[float]:
    """Asks the model to repeat each question, and computes the share of its words, in order, that come back (ROUGE-L recall). A
    model that can repeat a corrupted question has read it."""
    prompts = encoder.encode_prompts([REPEAT.format(question=question) for question in questions])
    answers = written(generate(model, prompts, **writing(model, encoder, max_new_tokens)))
    texts = [decoded(encoder.tokenizer, ids) for ids in answers]
    return [rouge("rougeL", question, text).recall for question, text in zip(questions, texts, strict=True)]
