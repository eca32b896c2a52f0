"""Make the embedded model: vocabulary, tokenizer and weights of ``panda_fusion/tiny/model``.

The text comes from `panda_fusion.tiny.world`. The model is a small BERT, trained with two objectives:

* masked words: 20 % of the pieces are hidden and predicted;
* same passage, on [CLS] through the pooler: whether the second segment is from the same passage as the
  first or from another passage about the same people, things and topic. This replaces BERT's next-sentence
  objective and, like it, gives [CLS], the pooler, [SEP] and both segment embeddings a use.

A fifth of the passages are joined into one segment, so that single texts are not new to the model.

Usage: python scripts/pretrain_tiny.py --minutes 15 --threads 2
and, to train further with other text: add --start panda_fusion/tiny/model --seed 2
"""

from __future__ import annotations

import argparse
import json
import math
import platform
import random
import shlex
import shutil
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import safetensors.torch
import tokenizers
import torch
import transformers
from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers
from torch.nn import functional
from transformers import BertConfig, BertForPreTraining, BertTokenizerFast

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from panda_fusion.tiny import world

SPECIAL = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
PAD, CLS, SEP, MASK = 0, 2, 3, 4
IGNORED = -100
MASK_RATE = 0.2
JOINED_RATE = 0.2
HELD_OUT_SEED_OFFSET = 1000


@dataclass
class Batch:
    """Padded inputs, the positions (flat) and pieces that are hidden, and the same-passage labels."""

    ids: torch.Tensor
    types: torch.Tensor
    attention: torch.Tensor
    positions: torch.Tensor
    hidden: torch.Tensor
    same: torch.Tensor


Example = tuple[list[int], list[int], int]


def parse_arguments() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n\n")[0])
    root = Path(__file__).resolve().parent.parent
    parser.add_argument("--output", type=Path, default=root / "panda_fusion" / "tiny" / "model")
    parser.add_argument("--start", type=Path, help="go on from this model folder (its tokenizer and weights)")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--minutes", type=float, default=18.0, help="time for the training loop (default 18)")
    parser.add_argument("--steps", type=int, default=0, help="a fixed number of steps in place of --minutes")
    parser.add_argument("--pairs", type=int, default=500_000, help="passages generated; they are read in turn")
    parser.add_argument("--batch", type=int, default=128)
    parser.add_argument("--rate", type=float, default=1.5e-3, help="highest learning rate")
    parser.add_argument("--vocabulary", type=int, default=1200)
    parser.add_argument("--hidden", type=int, default=128)
    parser.add_argument("--layers", type=int, default=4)
    parser.add_argument("--heads", type=int, default=4)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--bf16", action="store_true", help="bfloat16 autocast (faster on some CPUs only)")
    return parser.parse_args()


def train_tokenizer(seed: int, size: int) -> BertTokenizerFast:
    """A lower-case WordPiece tokenizer of world text, with pieces for all printable ASCII."""
    tokenizer = Tokenizer(models.WordPiece(unk_token="[UNK]"))
    tokenizer.normalizer = normalizers.BertNormalizer(lowercase=True)
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    tokenizer.decoder = decoders.WordPiece(prefix="##")
    characters = [chr(code) for code in range(33, 127) if not chr(code).isupper()]
    trainer = trainers.WordPieceTrainer(
        vocab_size=size,
        special_tokens=SPECIAL,
        initial_alphabet=characters,
        min_frequency=1,
        show_progress=False,
    )
    # The trainer adds "##x" only for characters it saw inside a word, so it sees each once in a made-up word.
    letters = ["".join(characters), "".join(reversed(characters))]
    tokenizer.train_from_iterator([*world.corpus(seed, 60_000), *letters], trainer)
    tokenizer.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]",
        pair="[CLS] $A [SEP] $B:1 [SEP]:1",
        special_tokens=[("[CLS]", CLS), ("[SEP]", SEP)],
    )
    return BertTokenizerFast(tokenizer_object=tokenizer, do_lower_case=True, model_max_length=256)


def encode_pairs(tokenizer: BertTokenizerFast, seed: int, count: int) -> list[Example]:
    """(ids of the first half, ids of the second, 0 if of one passage else 1), 0 and 1 as in BERT."""
    pairs = list(world.passage_pairs(seed, count))
    first = tokenizer([pair[0] for pair in pairs], add_special_tokens=False)["input_ids"]
    second = tokenizer([pair[1] for pair in pairs], add_special_tokens=False)["input_ids"]
    return [(a, b, 0 if pair[2] else 1) for a, b, pair in zip(first, second, pairs, strict=True)]


def assemble(example: Example, rng: random.Random) -> tuple[list[int], int, int]:
    """Ids with [CLS] and [SEP], the length of the first segment, and the same-passage label or `IGNORED`."""
    first, second, label = example
    if label == 0 and rng.random() < JOINED_RATE:
        ids = [CLS, *first, *second, SEP]
        return ids, len(ids), IGNORED
    return [CLS, *first, SEP, *second, SEP], len(first) + 2, label


def collate(examples: list[Example], rng: random.Random, pieces: int) -> Batch:
    """Pad the examples and hide pieces: 80 % become [MASK], 10 % another piece, 10 % stay."""
    rows = [assemble(example, rng) for example in examples]
    width = max(len(ids) for ids, _, _ in rows)
    ids = torch.full((len(rows), width), PAD)
    types = torch.zeros_like(ids)
    for row, (values, boundary, _) in enumerate(rows):
        ids[row, : len(values)] = torch.tensor(values)
        types[row, boundary : len(values)] = 1
    draw = torch.rand(ids.shape)
    chosen = (draw < MASK_RATE) & (ids >= len(SPECIAL))
    positions = chosen.flatten().nonzero().squeeze(1)
    hidden = ids.flatten()[positions]
    attention = (ids != PAD).long()
    fate = torch.rand(ids.shape)
    ids[chosen & (fate < 0.8)] = MASK
    noise = chosen & (fate >= 0.9)
    ids[noise] = torch.randint(len(SPECIAL), pieces, (int(noise.sum()),))
    return Batch(ids, types, attention, positions, hidden, torch.tensor([label for _, _, label in rows]))


def batches(examples: list[Example], rng: random.Random, size: int, pieces: int) -> Iterator[Batch]:
    """Endless batches; neighbours in a shuffled pool are sorted by length to waste little padding."""
    pool = 32 * size
    while True:
        order = rng.sample(range(len(examples)), len(examples))
        for start in range(0, len(order) - pool + 1, pool):
            part = sorted(order[start : start + pool], key=lambda i: len(examples[i][0]) + len(examples[i][1]))
            groups = [part[i : i + size] for i in range(0, pool, size)]
            rng.shuffle(groups)
            for group in groups:
                yield collate([examples[i] for i in group], rng, pieces)


def losses(model: BertForPreTraining, batch: Batch) -> tuple[torch.Tensor, torch.Tensor, float, float]:
    """Masked-word loss, same-passage loss, masked accuracy and same-passage accuracy on a batch."""
    output = model.bert(input_ids=batch.ids, token_type_ids=batch.types, attention_mask=batch.attention)
    states = output.last_hidden_state.flatten(0, 1)[batch.positions]
    scores = model.cls.predictions(states).float()
    relation = model.cls.seq_relationship(output.pooler_output).float()
    known = batch.same != IGNORED
    words = functional.cross_entropy(scores, batch.hidden)
    passages = functional.cross_entropy(relation, batch.same, ignore_index=IGNORED)
    right = (scores.argmax(-1) == batch.hidden).float().mean().item()
    return words, passages, right, (relation.argmax(-1) == batch.same)[known].float().mean().item()


def optimizer_for(model: BertForPreTraining, rate: float) -> torch.optim.AdamW:
    """AdamW with weight decay on matrices only."""
    matrices = [weight for weight in model.parameters() if weight.ndim > 1]
    vectors = [weight for weight in model.parameters() if weight.ndim <= 1]
    groups = [{"params": matrices, "weight_decay": 0.01}, {"params": vectors, "weight_decay": 0.0}]
    return torch.optim.AdamW(groups, lr=rate, betas=(0.9, 0.98), eps=1e-6)


def rate_factor(progress: float, warm_up: float = 0.04) -> float:
    """Linear warm-up, then a cosine down to nothing; `progress` is the share of the training done."""
    if progress < warm_up:
        return progress / warm_up + 0.01
    return max(0.0, 0.5 * (1 + math.cos(math.pi * (progress - warm_up) / (1 - warm_up))))


def train(model: BertForPreTraining, stream: Iterator[Batch], arguments: argparse.Namespace) -> dict[str, Any]:
    """Train in place and print as it goes; returns the steps done and the means of the last 200."""
    optimizer = optimizer_for(model, arguments.rate)
    model.train()
    began, step, progress = time.monotonic(), 0, 0.0
    recent: list[tuple[float, float, float, float]] = []
    while progress < 1.0:
        for group in optimizer.param_groups:
            group["lr"] = arguments.rate * rate_factor(progress)
        with torch.autocast("cpu", torch.bfloat16, enabled=arguments.bf16):
            words, passages, right, same = losses(model, next(stream))
        optimizer.zero_grad(set_to_none=True)
        (words + 0.5 * passages).backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        step += 1
        spent = time.monotonic() - began
        progress = step / arguments.steps if arguments.steps else spent / (60 * arguments.minutes)
        recent = [*recent[-199:], (words.item(), right, passages.item(), same)]
        if step % 100 == 0:
            means = [sum(column) / len(recent) for column in zip(*recent, strict=True)]
            print(f"{spent:6.0f} s  step {step:5d}  masked loss {means[0]:.3f} accuracy {means[1]:.3f}  "
                  f"passage loss {means[2]:.3f} accuracy {means[3]:.3f}", flush=True)  # fmt: skip
    means = [sum(column) / len(recent) for column in zip(*recent, strict=True)]
    names = ("masked_loss", "masked_accuracy", "same_passage_loss", "same_passage_accuracy")
    return {"steps": step, "seconds": round(time.monotonic() - began)} | {
        name: round(value, 4) for name, value in zip(names, means, strict=True)
    }


@torch.no_grad()
def evaluate(model: BertForPreTraining, examples: list[Example], seed: int) -> dict[str, float]:
    """Masked-word and same-passage loss and accuracy on examples that were not trained on."""
    model.eval()
    torch.manual_seed(seed)
    rng = random.Random(seed)
    results = []
    for start in range(0, len(examples), 256):
        words, passages, right, same = losses(
            model, collate(examples[start : start + 256], rng, model.config.vocab_size)
        )
        results.append((words.item(), right, passages.item(), same))
    names = ("masked_loss", "masked_accuracy", "same_passage_loss", "same_passage_accuracy")
    return {name: round(sum(col) / len(col), 4) for name, col in zip(names, zip(*results, strict=True), strict=True)}


def save(model: BertForPreTraining, tokenizer: BertTokenizerFast, record: dict[str, Any], output: Path) -> None:
    """Write the folder: config.json, model.safetensors (fp16), tokenizer files and training.json."""
    output.mkdir(parents=True, exist_ok=True)
    state = {name: tensor.detach().half().contiguous() for name, tensor in model.state_dict().items()}
    # The output layer shares the word embeddings and the output bias; from_pretrained ties them again.
    for tied in ("cls.predictions.decoder.weight", "cls.predictions.decoder.bias"):
        state.pop(tied, None)
    state = {name: tensor for name, tensor in state.items() if not name.endswith("position_ids")}
    safetensors.torch.save_file(state, str(output / "model.safetensors"), metadata={"format": "pt"})
    (output / "model.safetensors").chmod(0o644)
    model.config.architectures = ["BertForPreTraining"]
    # Stored in half precision, but to be computed with in single precision unless the caller says otherwise.
    model.config.dtype = torch.float32
    model.config.save_pretrained(output)
    with tempfile.TemporaryDirectory() as folder:
        tokenizer.save_pretrained(folder)
        for name in ("tokenizer.json", "tokenizer_config.json"):
            shutil.copy(Path(folder) / name, output / name)
    (output / "training.json").write_text(json.dumps(record, indent=2) + "\n", encoding="utf-8")


def initial_model(arguments: argparse.Namespace, pieces: int) -> tuple[BertForPreTraining, list[dict[str, Any]]]:
    """A new model, or the one of --start with the records of how that was trained."""
    if arguments.start:
        model = BertForPreTraining.from_pretrained(arguments.start, dtype=torch.float32)
        for module in model.modules():
            if isinstance(module, torch.nn.Dropout):
                module.p = 0.0
        earlier = json.loads((arguments.start / "training.json").read_text(encoding="utf-8"))
        return model, [*earlier.pop("earlier", []), earlier]
    config = BertConfig(
        vocab_size=pieces, hidden_size=arguments.hidden, num_hidden_layers=arguments.layers,
        num_attention_heads=arguments.heads, intermediate_size=4 * arguments.hidden,
        max_position_embeddings=256, type_vocab_size=2, pad_token_id=PAD,
        # The text is generated afresh and hardly repeats, so there is nothing for dropout to prevent here.
        hidden_dropout_prob=0.0, attention_probs_dropout_prob=0.0,
    )  # fmt: skip
    return BertForPreTraining(config), []


def main() -> None:
    """Run all stages."""
    arguments = parse_arguments()
    torch.set_num_threads(arguments.threads)
    torch.manual_seed(arguments.seed)
    began = time.monotonic()
    if arguments.start:
        tokenizer = BertTokenizerFast.from_pretrained(arguments.start)
    else:
        tokenizer = train_tokenizer(arguments.seed, arguments.vocabulary)
    examples = encode_pairs(tokenizer, arguments.seed, arguments.pairs)
    held_out = encode_pairs(tokenizer, arguments.seed + HELD_OUT_SEED_OFFSET, 4096)
    pieces = sum(len(a) + len(b) + 3 for a, b, _ in examples) / len(examples)
    print(f"{len(tokenizer)} pieces, {len(examples)} passages of {pieces:.1f} pieces, "
          f"made in {time.monotonic() - began:.0f} s", flush=True)  # fmt: skip
    model, earlier = initial_model(arguments, len(tokenizer))
    stream = batches(examples, random.Random(arguments.seed), arguments.batch, len(tokenizer))
    last = train(model, stream, arguments)
    model.config.hidden_dropout_prob = model.config.attention_probs_dropout_prob = 0.1
    record: dict[str, Any] = {
        "command": "python " + shlex.join(["scripts/pretrain_tiny.py", *sys.argv[1:]]),
        "seed": arguments.seed,
        "batch": arguments.batch,
        "passages": arguments.pairs,
        "parameters": sum(weight.numel() for weight in model.parameters()),
        "vocabulary": len(tokenizer),
        "training_last_200_steps": last,
        "held_out": evaluate(model, held_out, arguments.seed),
        "versions": {
            "python": platform.python_version(),
            "torch": torch.__version__,
            "transformers": transformers.__version__,
            "tokenizers": tokenizers.__version__,
        },
        "machine": f"{platform.machine()} CPU, {arguments.threads} threads",
    }
    if earlier:
        record["earlier"] = earlier
    print(json.dumps(record, indent=2))
    save(model, tokenizer, record, arguments.output)


if __name__ == "__main__":
    main()
