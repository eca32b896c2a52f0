"""How much memory training a prompt on a large decoder takes: the arithmetic, and a run of a smaller one.

python scripts/decoder_memory.py             # print the arithmetic for 7 and 1.5 billion parameters
python scripts/decoder_memory.py --measure   # run a decoder of 126 million parameters, write what it took
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import resource
import subprocess
import sys
import tempfile
from dataclasses import asdict, dataclass
from pathlib import Path

RECORD = Path(__file__).resolve().parent.parent / "benchmarks" / "decoder_memory.json"
GIB = 2**30


@dataclass(frozen=True)
class Decoder:
    """Sizes of a decoder of Llama's kind. `biases`: whether queries, keys and values have them (Qwen2)."""

    layers: int
    hidden: int
    heads: int
    kv_heads: int
    intermediate: int
    vocabulary: int
    biases: bool = False

    @property
    def parameters(self) -> int:
        """Of the base model: embeddings, layers and the last norm (no language model head)."""
        head = self.hidden // self.heads
        attention = 2 * self.hidden * self.hidden + 2 * self.hidden * self.kv_heads * head
        if self.biases:
            attention += self.hidden + 2 * self.kv_heads * head
        layer = attention + 3 * self.hidden * self.intermediate + 2 * self.hidden
        return self.vocabulary * self.hidden + self.layers * layer + self.hidden


LLAMA_7B = Decoder(layers=32, hidden=4096, heads=32, kv_heads=32, intermediate=11008, vocabulary=32000)
QWEN_1_5B = Decoder(layers=28, hidden=1536, heads=12, kv_heads=2, intermediate=8960, vocabulary=151936, biases=True)
"""Qwen2.5 of 1.5 billion parameters, whose output embeddings are those of the input."""
SMALL = Decoder(layers=16, hidden=768, heads=12, kv_heads=4, intermediate=2048, vocabulary=32000)
CARDS = (
    (LLAMA_7B, "Llama 2, 7 B", 80, 72),
    (QWEN_1_5B, "Qwen2.5, 1.5 B", 24, 21),
)
"""What the arithmetic is for: a decoder, its name, GiB of a GPU, and GiB of these that are counted as usable."""
BATCH, TOKENS, LENGTH, STEPS = 8, 128, 20, 3
"""The measured run: texts per step, tokens per text, virtual tokens, steps."""


def weight_bytes(decoder: Decoder) -> int:
    """Frozen weights in bfloat16."""
    return 2 * decoder.parameters


def layer_bytes_per_token(decoder: Decoder) -> int:
    """What autograd keeps of one token in one layer, weights frozen, bfloat16, fused attention.

    A frozen linear layer keeps nothing of its input, since no gradient of its weights is asked for. What remains:
    the float32 copies of the two norms' inputs (4 bytes each), queries, keys, values and outputs of attention, the
    keys and values repeated for all heads, with the logarithms of the softmax sums (float32), and of the gated
    feed-forward sublayer the gate before and after its activation and what it multiplies.
    """
    norms = 2 * 4 * decoder.hidden
    attention = 4 * 2 * decoder.hidden + 4 * decoder.heads
    feed_forward = 3 * 2 * decoder.intermediate
    return norms + attention + feed_forward


def activation_bytes_per_token(decoder: Decoder, checkpointing: bool) -> int:
    """What a forward pass keeps of one token for the backward pass.

    With checkpointing each layer keeps its input alone, and one layer at a time is computed again. The last norm
    keeps a float32 copy of its input either way.
    """
    last = 4 * decoder.hidden
    if checkpointing:
        return decoder.layers * 2 * decoder.hidden + last + layer_bytes_per_token(decoder)
    return decoder.layers * layer_bytes_per_token(decoder) + last


def prompt_bytes(decoder: Decoder, length: int) -> int:
    """One prefix in training: float32 tensors, their gradient, AdamW's two moments, a copy of the best, all float32,
    and the bfloat16 copy that enters the layers, with its gradient."""
    numbers = 2 * decoder.layers * length * decoder.kv_heads * (decoder.hidden // decoder.heads)
    return numbers * (5 * 4 + 2 * 2)


def total_bytes(decoder: Decoder, length: int, texts: int, tokens: int, checkpointing: bool) -> int:
    """Weights, one prompt with its optimizer, and the activations of a batch."""
    activations = texts * tokens * activation_bytes_per_token(decoder, checkpointing)
    return weight_bytes(decoder) + prompt_bytes(decoder, length) + activations


def largest_batch(decoder: Decoder, length: int, tokens: int, checkpointing: bool, available: int) -> int:
    """Texts of so many tokens that fit beside weights and prompt."""
    return (available - weight_bytes(decoder) - prompt_bytes(decoder, length)) // (
        tokens * activation_bytes_per_token(decoder, checkpointing)
    )


def make_decoder(decoder: Decoder, folder: Path) -> None:
    """Write a random Llama (Qwen2, if it has biases) of these sizes in bfloat16, with the byte tokenizer of the tiny
    one."""
    import torch
    from transformers import AutoConfig, AutoModel

    from panda_fusion.testing import make_tiny_backbone

    model_type = "qwen2" if decoder.biases else "llama"
    make_tiny_backbone(model_type, folder)
    config = AutoConfig.for_model(
        model_type,
        hidden_size=decoder.hidden,
        num_hidden_layers=decoder.layers,
        num_attention_heads=decoder.heads,
        num_key_value_heads=decoder.kv_heads,
        intermediate_size=decoder.intermediate,
        vocab_size=decoder.vocabulary,
        pad_token_id=None,
    )
    torch.manual_seed(0)
    AutoModel.from_config(config, dtype=torch.bfloat16).save_pretrained(folder)


def peak() -> int:
    """Largest resident set of this process so far, in bytes."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def one_run(folder: str, checkpointing: bool) -> dict[str, object]:
    """Train a prefix and a head for a few steps; what the process took at most."""
    import time

    import torch

    from panda_fusion import packed_linear
    from panda_fusion.backbone import load_backbone
    from panda_fusion.injection import Rows
    from panda_fusion.plugin_manager import peft_methods

    packed_linear.LARGEST = 0  # copies of the weights, which only CPUs have
    device, started = torch.device("cpu"), time.monotonic()
    backbone = load_backbone(folder, device=device, dtype=torch.bfloat16, gradient_checkpointing=checkpointing)
    loaded = peak()
    shape = backbone.shape
    method = peft_methods().create(f"prefix:length={LENGTH}")
    generator = torch.Generator().manual_seed(0)
    prefix_shape = (1, *method.stored_shapes(shape)["key"])
    tensors = {
        name: (0.02 * torch.randn(prefix_shape, generator=generator)).requires_grad_() for name in ("key", "value")
    }
    head = {n: t.unsqueeze(0).requires_grad_() for n, t in backbone.head(2).create(generator).items()}
    optimizer = torch.optim.AdamW([*tensors.values(), *head.values()], lr=1e-2)
    ids = torch.randint(300, SMALL.vocabulary, (BATCH, TOKENS), generator=generator)
    lengths, labels = torch.full((BATCH,), TOKENS), torch.arange(BATCH) % 2
    losses = []
    for _ in range(STEPS):
        pooled = backbone.forward(ids, lengths, None, method.inject(tensors, shape), Rows(1))
        loss = torch.nn.functional.cross_entropy(backbone.head(2)(head, pooled.unsqueeze(0))[0], labels)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(round(float(loss), 4))
    return {
        "checkpointing": checkpointing,
        "loaded_bytes": loaded,
        "peak_bytes": peak(),
        "losses": losses,
        "seconds": round(time.monotonic() - started, 1),
    }


def measure() -> dict[str, object]:
    """Run the small decoder without and with checkpointing, each in a process of its own."""
    with tempfile.TemporaryDirectory() as folder:
        make_decoder(SMALL, Path(folder))
        runs = []
        for checkpointing in (False, True):
            command = [sys.executable, __file__, "--one", folder, *(["--checkpointing"] if checkpointing else [])]
            done = subprocess.run(command, check=True, capture_output=True, text=True)
            runs.append(json.loads(done.stdout.splitlines()[-1]))
    import torch

    return {
        "decoder": asdict(SMALL) | {"parameters": SMALL.parameters},
        "texts": BATCH,
        "tokens": TOKENS,
        "length": LENGTH,
        "steps": STEPS,
        "threads": int(os.environ.get("OMP_NUM_THREADS", os.cpu_count() or 1)),
        "machine": platform.machine(),
        "torch": torch.__version__.split("+")[0],
        "runs": runs,
    }


def arithmetic(decoder: Decoder, usable: int) -> list[tuple[str, str]]:
    """Rows (what, how much) for a decoder on a GPU with so many usable GiB."""
    length, tokens = 20, 256
    rows = [
        ("parameters of the base model", f"{decoder.parameters / 1e9:.2f} billion"),
        ("frozen weights, bfloat16", f"{weight_bytes(decoder) / GIB:.1f} GiB"),
        (
            f"one prefix of {length} tokens with gradient, AdamW and best copy",
            f"{prompt_bytes(decoder, length) / GIB:.2f} GiB",
        ),
    ]
    for checkpointing, words in ((False, "without"), (True, "with")):
        each = activation_bytes_per_token(decoder, checkpointing)
        most = largest_batch(decoder, length, tokens, checkpointing, usable * GIB)
        rows += [
            (f"activations per token, {words} checkpointing", f"{each / 2**20:.2f} MiB"),
            (
                f"in all for 16 texts of {tokens} tokens, {words} checkpointing",
                f"{total_bytes(decoder, length, 16, tokens, checkpointing) / GIB:.1f} GiB",
            ),
            (f"texts of {tokens} tokens that fit, {words} checkpointing", str(most)),
        ]
    return rows


def main() -> None:
    """Print the arithmetic, or measure."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--measure", action="store_true", help="run the small decoder and write the record")
    parser.add_argument("--one", metavar="FOLDER", help=argparse.SUPPRESS)
    parser.add_argument("--checkpointing", action="store_true", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.one:
        print(json.dumps(one_run(options.one, options.checkpointing)))
    elif options.measure:
        record = measure()
        RECORD.write_text(json.dumps(record, indent=2) + "\n", encoding="utf-8")
        print(f"wrote {RECORD.name}: {json.dumps(record['runs'])}")
    else:
        for decoder, name, total, usable in CARDS:
            print(f"{name}, {usable} of {total} GiB")
            for what, how_much in arithmetic(decoder, usable):
                print(f"  {what}: {how_much}")


if __name__ == "__main__":
    main()
