"""Peak memory of SKU beside a reading that keeps every model that its paper names: processor time and resident memory in one run.

    python benchmarks/sku_memory.py                  a Llama of 60 M random weights, 2 steps of batch 2 with 5 mismatched answers
    python benchmarks/sku_memory.py --width 256      smaller

`expunge` is `expunge unlearn sku --lora --micro-batch-size 1`, from the start model to the artifact. `naive` is what the paper's
text says, word for word: a frozen second model for the divergence, the graphs of all three terms until one backward pass, full
weights with AdamW, then the start weights, the harmful ones, their difference, its negation and the result side by side. Each
runs in a process of its own; memory is the largest anonymous one (RssAnon; a resident set would count mapped weight files) less
that of the same process after its imports.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

STEPS, BATCH, ANSWERS, VOCABULARY = 2, 2, 5, 16000

WATCH = """
import threading, time
peak = [0.0]
def anonymous():
    with open("/proc/self/status") as file:
        return next(int(line.split()[1]) for line in file if line.startswith("RssAnon")) / 1e3
def watch():
    while True:
        peak[0] = max(peak[0], anonymous())
        time.sleep(0.01)
def begin():
    threading.Thread(target=watch, daemon=True).start()
    return anonymous()
"""
OURS = """
import json, resource, sys, warnings
warnings.filterwarnings("ignore")
import expunge, torch, peft, transformers
from expunge import Training
from expunge.methods import SKU
import expunge.training.loop
model, forget, retain, out, steps, batch, answers = sys.argv[1:]
before = begin()
training = Training(steps=int(steps), batch_size=int(batch), micro_batch_size=1, lora=True, learning_rate=1e-3)
expunge.unlearn(SKU(answers=int(answers)), model=model, forget=forget, retain=retain, out=out, training=training, quiet=True)
usage = resource.getrusage(resource.RUSAGE_SELF)
print(json.dumps([peak[0] - before, usage.ru_utime + usage.ru_stime]))
"""
NAIVE = """
import copy, json, random, resource, sys, warnings
warnings.filterwarnings("ignore")
import torch, transformers, expunge, peft
import expunge.training.loop
from torch.nn import functional as F
from transformers import AutoModelForCausalLM, AutoTokenizer
path, forget, retain, out, steps, batch, answers = sys.argv[1:]
before = begin()
model = AutoModelForCausalLM.from_pretrained(path, dtype=torch.float32).train()
start = AutoModelForCausalLM.from_pretrained(path, dtype=torch.float32).eval()
tokenizer = AutoTokenizer.from_pretrained(path)
tokenizer.pad_token = tokenizer.eos_token
bad, good = ([json.loads(x) for x in open(f)] for f in (forget, retain))
optimizer = torch.optim.AdamW(model.parameters(), lr=1e-5)
random.seed(0)
def loss(pairs):
    tokens = tokenizer([f"{p} {a}" for p, a in pairs], return_tensors="pt", padding=True)
    tokens.pop("token_type_ids", None)
    return model(**tokens, labels=tokens.input_ids.masked_fill(tokens.attention_mask == 0, -100)).loss
for step in range(int(steps)):
    rows = random.sample(bad, int(batch))
    distortion = loss([(r["prompt"], r["response"]) for r in rows])
    other = random.sample([r["response"] for r in bad], int(answers))
    disassociation = loss([(r["prompt"], a) for r in rows for a in other])
    texts = [f"{r['prompt']} {r['response']}" for r in random.sample(good, int(batch))]
    tokens = tokenizer(texts, return_tensors="pt", padding=True)
    tokens.pop("token_type_ids", None)
    with torch.no_grad():
        reference = start(**tokens).logits.softmax(-1)
    preservation = -(reference * ((reference + 1e-12) / model(**tokens).logits.softmax(-1)).log()).sum(-1).mean()
    (2.5 * distortion + 2.5 * disassociation + preservation).backward()
    optimizer.step()
    optimizer.zero_grad()
vector = {n: p.detach() - start.state_dict()[n] for n, p in model.state_dict().items()}
negated = {n: -t for n, t in vector.items()}
result = {n: t + negated[n] for n, t in start.state_dict().items()}
start.load_state_dict(result)
start.save_pretrained(out)
usage = resource.getrusage(resource.RUSAGE_SELF)
print(json.dumps([peak[0] - before, usage.ru_utime + usage.ru_stime]))
"""


def tokenizer() -> PreTrainedTokenizerFast:
    """Bytes, and as many unused tokens as make the vocabulary of a usual size."""
    tokens = ["<s>", "</s>", *sorted(pre_tokenizers.ByteLevel.alphabet())]
    found = Tokenizer(models.BPE({token: i for i, token in enumerate(tokens)}, []))
    found.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    found.decoder = decoders.ByteLevel()
    return PreTrainedTokenizerFast(tokenizer_object=found, bos_token="<s>", eos_token="</s>")


def write_inputs(folder: Path, width: int, layers: int) -> tuple[Path, Path, Path]:
    config = LlamaConfig(
        vocab_size=VOCABULARY, hidden_size=width, intermediate_size=3 * width, num_hidden_layers=layers,
        num_attention_heads=width // 64, num_key_value_heads=width // 64, bos_token_id=0, eos_token_id=1, dtype="float32",
    )  # fmt: skip
    LlamaForCausalLM(config).save_pretrained(folder / "model")
    tokenizer().save_pretrained(folder / "model")
    for name, word in (("forget", "bad"), ("retain", "good")):
        rows = [{"prompt": f"what about {i} ?", "response": f"the {word} answer number {i}"} for i in range(40)]
        (folder / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return folder / "model", folder / "forget.jsonl", folder / "retain.jsonl"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--width", type=int, default=512)
    parser.add_argument("--layers", type=int, default=12)
    flags = parser.parse_args()
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1"}
    torch.manual_seed(0)
    with tempfile.TemporaryDirectory() as where:
        folder = Path(where)
        inputs = [str(path) for path in write_inputs(folder, flags.width, flags.layers)]
        size = (folder / "model/model.safetensors").stat().st_size / 1e6
        print(f"one model is {size:.0f} MB\n| | peak MB | models | processor s |\n| --- | --- | --- | --- |")
        peaks = []
        for label, code in (("expunge", OURS), ("naive", NAIVE)):
            words = [sys.executable, "-c", WATCH + code, *inputs, str(folder / label), str(STEPS), str(BATCH), str(ANSWERS)]
            done = subprocess.run(words, env=environment, capture_output=True, text=True, check=True)
            memory, seconds = json.loads(done.stdout.strip().splitlines()[-1])
            peaks.append(memory)
            print(f"| {label} | {memory:.0f} | {memory / size:.1f} | {seconds:.1f} |", flush=True)
        print(f"{peaks[1] / peaks[0]:.1f} times less")


if __name__ == "__main__":
    main()
