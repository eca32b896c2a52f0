"""Write docs/support.md from what runs on the tiny backbones, or check that it is up to date.

python scripts/write_support_docs.py            # write
python scripts/write_support_docs.py --check    # exit code 1 if it would change
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import sys
import tempfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

os.environ.setdefault("HF_HUB_OFFLINE", "1")

ROOT = Path(__file__).resolve().parent.parent
for folder in (ROOT / "scripts", ROOT / "tests"):
    if str(folder) not in sys.path:
        sys.path.insert(0, str(folder))

import decoder_memory  # noqa: E402
import test_adapter  # noqa: E402
import test_architectures  # noqa: E402
import test_engine_attention  # noqa: E402
import test_engine_input_prompt  # noqa: E402
import test_full  # noqa: E402
import torch  # noqa: E402

from panda_fusion.backbone import Backbone, load_backbone  # noqa: E402
from panda_fusion.dataset import EncodedSet, encode  # noqa: E402
from panda_fusion.errors import BackboneError  # noqa: E402
from panda_fusion.injection import Injection, Rows, per_layer  # noqa: E402
from panda_fusion.plugin_manager import peft_methods  # noqa: E402
from panda_fusion.readout import IGNORED, labels_and_mask, masked, read  # noqa: E402
from panda_fusion.task_loss import task_losses  # noqa: E402
from panda_fusion.testing import MODEL_TYPES, make_tiny_backbone  # noqa: E402

PAGE = ROOT / "docs" / "support.md"
CPU = torch.device("cpu")
KINDS = {
    "classification": "C",
    "regression": "R",
    "multiple-choice": "M",
    "token-classification": "T",
    "extractive-qa": "Q",
}
METHODS = {"prefix": "prefix:length=3", "prompt": "prompt:length=3", "adapter": "adapter", "full": "full"}
OUTPUTS = "module outputs"
"""What plugins of other people do: transforms of the layers' outputs."""
NAMES = {
    "bert": "BERT",
    "roberta": "RoBERTa",
    "electra": "ELECTRA",
    "distilbert": "DistilBERT",
    "modernbert": "ModernBERT",
    "albert": "ALBERT",
    "deberta-v2": "DeBERTa-v2, v3",
    "gpt2": "GPT-2",
    "opt": "OPT",
    "llama": "Llama",
    "qwen2": "Qwen2",
    "qwen3": "Qwen3",
    "t5": "T5's encoder",
}
POOLED = {"first": "first token", "last": "last token", "mean": "mean of all tokens"}
TEXTS = ["the dog is in a box", "no", "she was not good at that", "yes we can", "on my way to the box he was", "is it"]
TOLERANCE = 1e-4


def example_set(backbone: Backbone, kind: str) -> EncodedSet:
    """A few examples of a kind, cut from texts without the help of a task."""
    data = encode(backbone, [TEXTS], None, "classification", 40)
    count, longest = data.input_ids.shape
    words = torch.stack([torch.zeros(count, dtype=torch.int32), (data.lengths - 1).int()], dim=1)
    changes: dict[str, Any] = {
        "classification": {"labels": torch.arange(count) % 3},
        "regression": {"labels": torch.linspace(-1, 1, count)},
        "multiple-choice": {"labels": torch.arange(count // 2) % 2, "rows": 2, "choices": torch.full((count // 2,), 2)},
        "token-classification": {
            "labels": torch.tensor([[2, 1], [0, IGNORED]]).repeat(count // 2, 1),
            "words": words,
        },
        "extractive-qa": {
            "labels": torch.stack([torch.zeros(count, dtype=torch.int64), data.lengths - 1], dim=1),
            "answerable": torch.arange(longest) < data.lengths[:, None],
        },
    }[kind]
    arguments = {"input_ids": data.input_ids, "lengths": data.lengths, "token_types": data.token_types}
    return EncodedSet(**arguments, kind=kind, **changes)


def outputs_of(kind: str) -> int:
    """Width of a head in this page's examples."""
    return {"regression": 1, "multiple-choice": 1, "extractive-qa": 2}.get(kind, 3)


def trainable(name: str, backbone: Backbone, pack: int) -> dict[str, torch.Tensor]:
    """Tensors [G, ...] of a method, moved away from where an untrained method changes nothing."""
    generator = torch.Generator().manual_seed(0)
    if name == OUTPUTS:
        made = [{"scale": torch.zeros(backbone.shape.layers, backbone.shape.hidden)} for _ in range(pack)]
    else:
        method = peft_methods().create(METHODS[name])
        made = [method.create(backbone, generator) for _ in range(pack)]
    return {
        key: torch.stack([one[key] + 0.05 * torch.randn(one[key].shape, generator=generator) for one in made])
        for key in made[0]
    }


def injection_of(name: str, backbone: Backbone, tensors: Mapping[str, torch.Tensor]) -> Injection:
    """What a method adds to the forward pass."""
    if name != OUTPUTS:
        return peft_methods().create(METHODS[name]).inject(tensors, backbone.shape)
    scales = tensors["scale"].unbind(1)
    return Injection(
        outputs=per_layer(
            backbone.shape.layer_modules,
            [
                lambda output, rows, own=own: output * (1 + rows.spread(own, output.shape[0])[:, None]).to(output.dtype)
                for own in scales
            ],
        )
    )


def losses(
    name: str,
    backbone: Backbone,
    tensors: Mapping[str, torch.Tensor],
    head: Mapping[str, torch.Tensor],
    data: EncodedSet,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Logits [G, M, ...] and losses [G] of a pack, as a training step computes them."""
    pack = next(iter(tensors.values())).shape[0]
    index = torch.arange(len(data)).expand(pack, -1)
    width = data.input_ids.shape[1]
    states = read(backbone, data, index, width, injection_of(name, backbone, tensors), Rows(pack))
    logits = masked(backbone.head(outputs_of(data.kind), data.kind)(head, states), data, index)
    labels, mask = labels_and_mask(data, index, width)
    return logits, task_losses(logits, labels, data.kind, mask)


def check(name: str, backbone: Backbone, kind: str) -> None:
    """A training step of a pack, and each of its prompts alone.

    Raises:
        BackboneError: the combination is refused.
        AssertionError: it runs, and wrongly.
    """
    data = example_set(backbone, kind)
    head = backbone.head(outputs_of(kind), kind)
    pack = 1 if name != OUTPUTS and not peft_methods().create(METHODS[name]).packable else 2
    tensors = {key: tensor.requires_grad_() for key, tensor in trainable(name, backbone, pack).items()}
    generator = torch.Generator().manual_seed(1)
    own_head = {
        key: torch.randn((pack, *shape), generator=generator).mul(0.3).requires_grad_()
        for key, shape in head.shapes.items()
    }
    logits, each = losses(name, backbone, tensors, own_head, data)
    logits = logits.detach()
    assert bool(logits.isfinite().all())
    each.sum().backward()
    reached = {key: tensor.grad is not None and bool(tensor.grad.any()) for key, tensor in tensors.items()}
    if name == "full":  # embeddings of words and positions that do not occur, and poolers that a head does not use
        assert sum(reached.values()) > 0.8 * len(reached), reached
    else:
        assert all(reached.values()), reached
    if kind == "extractive-qa":  # a bias that is the same for all tokens
        assert all(tensor.grad is not None for tensor in own_head.values())
    else:
        assert all(tensor.grad is not None and bool(tensor.grad.isfinite().all()) for tensor in own_head.values())
    plain = read(backbone, data, torch.arange(len(data))[None], data.input_ids.shape[1], None, Rows(1))
    for place in range(pack):
        alone = [{key: tensor[place : place + 1] for key, tensor in group.items()} for group in (tensors, own_head)]
        with torch.no_grad():
            single, _ = losses(name, backbone, *alone, data)
            without = masked(head(alone[1], plain), data, torch.arange(len(data))[None])
        assert float((single[0] - logits[place]).abs().max()) <= TOLERANCE
        assert float((single - without).abs().max()) > TOLERANCE, "the method changes nothing"


def combinations(backbone: Backbone) -> dict[str, dict[str, str]]:
    """Method -> task kind -> empty where it runs, or the reason why it is refused."""
    found: dict[str, dict[str, str]] = {}
    for name in (*METHODS, OUTPUTS):
        found[name] = {}
        for kind in KINDS:
            try:
                check(name, backbone, kind)
                found[name][kind] = ""
            except BackboneError as error:
                found[name][kind] = str(error)
    return found


def refused() -> Iterator[tuple[str, str]]:
    """Architectures that are refused, and what `load_backbone` says."""
    from transformers import (
        BartConfig,
        BartModel,
        DebertaConfig,
        DebertaModel,
        JambaConfig,
        JambaModel,
        MambaConfig,
        MambaModel,
        MPNetConfig,
        MPNetModel,
    )

    sizes = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "vocab_size": 200}
    bart = {"d_model": 16, "encoder_layers": 1, "decoder_layers": 1, "encoder_ffn_dim": 16, "decoder_ffn_dim": 16}
    jamba = {"num_key_value_heads": 2, "num_experts": 1, "mamba_d_state": 4, "mamba_expand": 1}
    small: list[tuple[str, Any, Any]] = [
        ("DeBERTa (v1)", DebertaModel, DebertaConfig(**sizes, intermediate_size=16)),
        ("MPNet", MPNetModel, MPNetConfig(**sizes, intermediate_size=16)),
        ("BART", BartModel, BartConfig(**bart, encoder_attention_heads=2, decoder_attention_heads=2, vocab_size=200)),
        ("Mamba", MambaModel, MambaConfig(hidden_size=16, num_hidden_layers=1, state_size=4, vocab_size=200)),
        ("Jamba", JambaModel, JambaConfig(**sizes | {"num_hidden_layers": 8}, **jamba, intermediate_size=16)),
    ]
    with tempfile.TemporaryDirectory() as root:
        tokenizer = make_tiny_backbone("bert", Path(root) / "bert")
        for name, model, config in small:
            folder = Path(root) / name.split()[0].lower()
            model(config).save_pretrained(folder)
            for path in tokenizer.glob("token*"):
                shutil.copy(path, folder)
            try:
                load_backbone(str(folder), device=CPU, dtype=torch.float32)
            except BackboneError as error:
                yield name, str(error).replace(str(folder), folder.name)
            else:
                raise AssertionError(f"{name} was not refused")


INTRODUCTION = """\
# What is supported

<!-- Written by scripts/write_support_docs.py from what runs; change the code or the script and run it again. -->

Every entry of the first table has been run to write this page: a training step of a pack of two prompts on a tiny
random backbone of that architecture, with every trainable tensor reached by the gradient, and logits equal to
those of each prompt alone. `python scripts/write_support_docs.py` runs it again, and a test fails when the page is
out of date.

Task kinds: **C** classification, **R** regression, **M** multiple-choice, **T** token-classification, **Q**
extractive-qa. `full` changes the backbone's own weights, so it has no packs. *Module outputs* is what a PEFT method of
a plugin can do without anything of the engine's: transform the outputs of layers, sublayers or neurons
([plugins.md](plugins.md)).

"""
VERIFIED = """\

## How it is checked

Numbers are compared in float32 on tiny random backbones with padded batches, as a rule to 1e-5. *PEFT* is the PEFT
library's own model with the same tensors; *by hand* a forward pass written for the tests from the weights and the
published architecture, its attention over concatenated keys (adapters: Houlsby's networks put into transformers'
model); *transformers* the library's model with its inputs, its attention function or its weights put together for the
test. *Runs* is the first table's check alone, on code that is the same as for an architecture that is compared.

"""
NOTES = """\

## What to know of single architectures

- **ALBERT** runs one module as every layer; prefixes and transforms count the calls. Its input embeddings, and
  so prompts of the method `prompt`, are narrower than its hidden states (ELECTRA's too, in some sizes).
- **DeBERTa-v2 and v3**: a prefix has no position. Its keys enter the softmax with the content-to-content score
  alone, without the two relative-position terms, under the same scale, as in P-tuning v2's code.
- **Decoders** read a text at its last token. Batches are padded on the right inside the engine, whatever the
  tokenizer is configured to do; a tokenizer without padding token, or one that pads on the left, gives the same
  results. With a prefix PEFT's own results depend on how much a batch is padded on the left (its prefix keys are not
  rotated, its queries are); ours equal them on right padded batches. transformers has no multiple-choice head for
  decoders.
- **Llama, Qwen**: prefixes have the shape of the grouped key/value heads.
- **T5**: the encoder alone (T5, MT5, UMT5, flan), with zeros as the prefix's position bias. Its own
  classification heads sit behind the decoder; here every task kind has dropout and one linear layer on
  the encoder (the head of `T5ForTokenClassification`), on the mean of all tokens for whole texts. PEFT's prefix
  enters T5's decoder only.
- **Positions**: with a prefix of P tokens the text's positions start at P, as in P-tuning v2 and PEFT; texts and
  virtual tokens together must fit into the position table. DeBERTa-v2/v3 and T5 know distances only and have no
  longest text.
- **Relatives** that run through the same code: XLM-RoBERTa, CamemBERT, Mistral, MT5 and UMT5 (tested on tiny ones).
- **Other architectures** whose attention goes through transformers' attention interface (GPT-NeoX is tested)
  load as well and take prefixes and prompts; how many attention calls were made is checked in every pass, so a
  prefix is used in all layers or refused. Adapters and `on` need the places of sublayers, which are known for the
  architectures above only.
- **bfloat16**: weights are cast, rotary frequencies are not.

## Gradient checkpointing

`--gradient-checkpointing` (`load_backbone(..., gradient_checkpointing=True)`) makes the backward pass compute
layers again instead of keeping what is inside of them. It works for all architectures and methods of the first
table: the injection is entered again where the layer stood, with the dropout of the forward pass. Values and
gradients are equal to 1e-6 with and without it (`tests/test_gradient_checkpointing.py`). transformers' own switch
(`gradient_checkpointing_enable`) is refused, since it would compute layers again without the prompt.

## torch.compile

`--compile on` compiles the forward function of the backbone's layers, once for all of them, in a warm-up before the
training that the report shows apart. It is used for the methods `prefix` and `prompt`, in training, evaluation and
teachers' passes, on all architectures but DeBERTa; not with adapters, `full`, dropout in the backbone or gradient
checkpointing, nor in bfloat16 on a CPU (`panda_fusion/compiled.py` says why). Values and gradients are equal to 1e-5
(`tests/test_compiled.py`). It needs a C++ compiler on CPUs and Triton on GPUs; without them a warning says so, and
everything runs as ever. `auto`, the default, compiles nothing: on a CPU it gains nothing
([performance.md](performance.md)), on a GPU it has not been measured.

"""


def page() -> str:
    """The whole page."""
    from transformers.utils import logging

    logging.disable_progress_bar()
    logging.set_verbosity_error()
    return INTRODUCTION + "".join(_tables()) + NOTES + "".join(_refused()) + "".join(_memory())


def _tables() -> Iterator[str]:
    columns = (*METHODS, OUTPUTS)
    yield f"| architecture | reads a text at | {' | '.join(columns)} |\n|---|---|{'---|' * len(columns)}\n"
    reasons: dict[str, list[str]] = {}
    with tempfile.TemporaryDirectory() as root:
        for model_type in MODEL_TYPES:
            folder = make_tiny_backbone(model_type, Path(root) / model_type)
            backbone = load_backbone(str(folder), device=CPU, dtype=torch.float32)
            found = combinations(backbone)
            cells = []
            for name in columns:
                cells.append(" ".join(letter for kind, letter in KINDS.items() if not found[name][kind]))
                for kind, reason in found[name].items():
                    if reason and kind not in reasons.setdefault(NAMES[model_type], []):
                        reasons[NAMES[model_type]].append(kind)
            yield f"| {NAMES[model_type]} | {POOLED[backbone.pooling]} | {' | '.join(cells)} |\n"
    yield "\nRefused, with an error before anything is trained, because transformers has no such head:\n"
    yield "; ".join(f"{name}: {', '.join(kinds)}" for name, kinds in reasons.items() if kinds) + ".\n"
    yield VERIFIED
    yield "| architecture | no prompt | prefix | prompt | adapter | full |\n|---|---|---|---|---|---|\n"
    tests = {
        "no prompt": [
            (test_engine_attention.test_without_prefix_equals_transformers, "transformers"),
            (test_engine_attention.test_prefix_equals_a_forward_pass_written_by_hand, "transformers"),
        ],
        "prefix": [
            (test_engine_attention.test_prefix_equals_peft, "PEFT"),
            (test_engine_attention.test_prefix_equals_a_forward_pass_written_by_hand, "by hand"),
            (test_engine_attention.test_prefix_equals_a_plain_recomputation, "by hand"),
        ],
        "prompt": [
            (test_engine_input_prompt.test_input_prompt_equals_embeddings_put_in_front_by_hand, "transformers"),
            (test_architectures.test_input_prompt_equals_peft_on_decoders, "PEFT"),
        ],
        "adapter": [(test_adapter.test_equals_houlsby_adapters_put_in_by_hand, "by hand")],
        "full": [(test_full.test_training_equals_a_plain_loop_over_the_transformers_model, "transformers")],
    }
    for model_type in MODEL_TYPES:
        cells = []
        for checks in tests.values():
            found_in = dict.fromkeys(name for test, name in checks if model_type in _model_types(test))
            cells.append(", ".join(found_in) or "runs")
        yield f"| {NAMES[model_type]} | {' | '.join(cells)} |\n"
    yield "\n| what | tests |\n|---|---|\n"
    for what, checks in tests.items():
        names = [f"`{test.__module__}.py`: `{test.__name__}`" for test, _ in checks]
        yield f"| {what} | {'<br>'.join(names)} |\n"


def _model_types(test: Any) -> set[str]:
    """The model types that a test runs for, from its own parametrisation."""
    found = set()
    for mark in test.pytestmark:
        names, values = mark.args[:2]
        names = [name.strip() for name in names.split(",")] if isinstance(names, str) else list(names)
        if "model_type" in names:
            place = names.index("model_type")
            found |= {value if len(names) == 1 else value[place] for value in values}
    return found


def _refused() -> Iterator[str]:
    yield "## Refused architectures\n\n| model | the error |\n|---|---|\n"
    for name, reason in refused():
        yield f"| {name} | {reason} |\n"


def _memory() -> Iterator[str]:
    record = json.loads(decoder_memory.RECORD.read_text(encoding="utf-8"))
    yield MEMORY
    cards = decoder_memory.CARDS
    heads = [f"{name}, {usable} of {total} GiB" for _, name, total, usable in cards]
    yield f"| | {' | '.join(heads)} |\n|---|{'---|' * len(cards)}\n"
    columns = [decoder_memory.arithmetic(decoder, usable) for decoder, _, _, usable in cards]
    for cells in zip(*columns, strict=True):
        yield f"| {cells[0][0]} | {' | '.join(how_much for _, how_much in cells)} |\n"
    own = record["decoder"]
    kept = record["texts"] * record["tokens"] / 2**20
    yield (
        f"\nA smaller decoder was run: a random Llama of {own['parameters'] / 1e6:.0f} million parameters "
        f"({own['layers']} layers, {own['hidden']} wide, {own['kv_heads']} key/value heads for {own['heads']} heads) "
        f"in bfloat16 on the CPU, {record['steps']} steps with {record['texts']} texts of {record['tokens']} tokens "
        f"and a prefix of {record['length']} (torch {record['torch']}, {record['machine']}, OMP_NUM_THREADS"
        f" {record['threads']}). The command is `python scripts/decoder_memory.py --measure`.\n\n"
        "| | checkpointing off | on |\n|---|---|---|\n"
    )
    runs = record["runs"]
    small = decoder_memory.SMALL
    rows = {
        "largest resident set after loading": [run["loaded_bytes"] / 2**20 for run in runs],
        "largest resident set in all": [run["peak_bytes"] / 2**20 for run in runs],
        "difference": [(run["peak_bytes"] - run["loaded_bytes"]) / 2**20 for run in runs],
        "activations by the formula": [
            kept * decoder_memory.activation_bytes_per_token(small, run["checkpointing"]) for run in runs
        ],
    }
    for what, values in rows.items():
        yield f"| {what} | {' | '.join(f'{value:.0f} MiB' for value in values)} |\n"
    yield f"| loss of each step | {' | '.join(', '.join(map(str, run['losses'])) for run in runs)} |\n"
    yield AFTERWORD


MEMORY = """
## Memory of a large decoder

Training a prompt needs the frozen weights once, whatever the number of prompts, and no gradient or optimizer state
for them. Frozen linear layers keep nothing of their inputs for the backward pass; what is kept is counted by
`scripts/decoder_memory.py` (its docstrings say what), and a test compares it with what autograd really keeps, to
5 %. For Llama 2 of 7 billion parameters on one GPU of 80 GiB, and Qwen2.5 of 1.5 billion on one of 24 GiB, both in
bfloat16 with a prefix of 20 tokens; the column says what is counted as usable beside CUDA's context and the allocator's
fragments:

"""
AFTERWORD = """
The difference is larger than the formula, which is of a GPU with fused attention: on the CPU attention keeps its
weights and padded copies of keys and values, and temporaries of the forward and the backward pass, libraries that
the first step loads and the allocator's reserve come on top (not measured one by one). The decoders of 7 and 1.5
billion parameters have not been run: no such GPU was at hand.
"""


def main() -> int:
    """Write or check; the exit code."""
    parser = argparse.ArgumentParser(description="Write docs/support.md from what runs.")
    parser.add_argument("--check", action="store_true", help="only say whether the page is up to date")
    if parser.parse_args().check:
        fresh = PAGE.is_file() and PAGE.read_text(encoding="utf-8") == page()
        print(f"docs/{PAGE.name} is {'up to date' if fresh else 'out of date'}")
        return 0 if fresh else 1
    PAGE.write_text(page(), encoding="utf-8")
    print(f"wrote docs/{PAGE.name}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
