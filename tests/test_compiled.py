"""Compiled layers give the numbers of uncompiled ones, are compiled once, and are given up where they cannot be had."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from contextlib import nullcontext
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from engine_samples import largest, method, pack

from panda_fusion.backbone import Backbone, load_backbone
from panda_fusion.compiled import CompiledLayers, compile_layers
from panda_fusion.injection import Rows
from panda_fusion.packed_linear import can_pack
from panda_fusion_cli.main import main

Folder = Callable[[str], Path]
CPU = torch.device("cpu")
METHODS = ("prefix:length=3", "prompt:length=3", "adapter:reduction=4", "full")


def load(folder: Path, checkpointing: bool = False) -> Backbone:
    return load_backbone(str(folder), device=CPU, dtype=torch.float32, gradient_checkpointing=checkpointing)


def run(backbone: Backbone, spec: str, rows: int, width: int, training: bool, whole: bool) -> list[torch.Tensor]:
    """States of all tokens (or pooled ones), and in training the gradients of a random aim."""
    peft = method(spec)
    tensors = {name: tensor.requires_grad_() for name, tensor in pack(peft, backbone, 1).items()}
    ids = torch.randint(5, 30, (rows, width), generator=torch.Generator().manual_seed(width))
    lengths = torch.full((rows,), width)
    lengths[0] = width // 2
    with nullcontext() if training else torch.inference_mode():
        injection = peft.inject(tensors, backbone.shape)
        states = (backbone.hidden_states if whole else backbone.forward)(ids, lengths, None, injection, Rows(1))
    if not training:
        return [states]
    (states * torch.randn(states.shape, generator=torch.Generator().manual_seed(0))).sum().backward()
    gradients = [tensor.grad for tensor in tensors.values() if tensor.grad is not None]
    assert gradients
    return [states.detach(), *gradients]


@pytest.mark.skipif(
    shutil.which("g++") is None, reason="torch.compile needs a C++ compiler on a CPU, and g++ is missing"
)
def test_values_and_gradients_are_those_of_uncompiled_layers(
    tiny_folder: Folder, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Training and evaluation, pooled and whole, in sizes that the warm-up has not seen; nothing compiles a second
    time, and as much is compiled for four layers as for one."""
    from torch._dynamo.utils import counters

    torch._dynamo.reset()
    counters.clear()
    backbone = load(tiny_folder("bert"))
    sizes = ((8, 12), (5, 21), (1, 9))
    cases = [(spec, *size, t, w) for spec in METHODS for size in sizes for t in (True, False) for w in (True, False)]
    expected = [run(backbone, *case) for case in cases]
    compilation = compile_layers(backbone, [method("prefix")], 0.0, "on")
    assert compilation.reason is None
    assert compilation.seconds == backbone.compile_seconds > 0
    compiled = counters["stats"]["unique_graphs"]
    # Five pieces of a layer, for passes with gradients and without; two of the first layer, whose input has none.
    assert 0 < compiled <= 12
    used = []
    in_use = CompiledLayers.in_use
    monkeypatch.setattr(CompiledLayers, "in_use", lambda self: used.append(1) or in_use(self))
    stance = torch.compiler.set_stance  # what is not compiled would raise now, where it else runs as it is
    monkeypatch.setattr(torch.compiler, "set_stance", lambda _: stance("fail_on_recompile"))
    for case, results in zip(cases, expected, strict=True):
        used.clear()
        for result, other in zip(run(backbone, *case), results, strict=True):
            assert largest(result, other) <= 1e-5 * max(1.0, float(other.abs().max())), case
        spec, rows = case[:2]
        assert bool(used) == (spec.startswith("pr") and rows > 1), case
    assert counters["stats"]["unique_graphs"] == compiled
    assert not any("forward" in vars(layer) for layer in backbone._model.modules())


def fail(*_: Any, **__: Any) -> Any:
    raise RuntimeError("no compiler here.\nMore words.")


@pytest.fixture
def no_compiler(monkeypatch: pytest.MonkeyPatch) -> None:
    """A compiler that fails, as the default one does where there is no g++."""
    torch._dynamo.reset()
    monkeypatch.setattr(torch, "compile", partial(torch.compile, backend=fail))


@pytest.mark.usefixtures("no_compiler")
def test_without_a_compiler_layers_run_as_they_are(tiny_folder: Folder) -> None:
    backbone = load(tiny_folder("bert"))
    case = ("prefix:length=3", 4, 10, True, True)
    expected = run(backbone, *case)
    compilation = compile_layers(backbone, [method("prefix")], 0.0, "on")
    assert compilation.reason is not None
    assert compilation.reason.startswith("The layers run uncompiled, since torch.compile failed (")
    assert "no compiler here" in compilation.reason
    assert "More words" not in compilation.reason
    assert compilation.reason.endswith("it needs a C++ compiler (g++).")
    assert backbone.compiled is None
    assert backbone.compile_seconds == compilation.seconds == 0
    for result, other in zip(run(backbone, *case), expected, strict=True):
        assert torch.equal(result, other)


@pytest.mark.usefixtures("no_compiler")
@pytest.mark.parametrize("wanted", ["auto", "off"])
def test_nothing_is_compiled_unless_asked_for(wanted: Any, tiny_folder: Folder) -> None:
    backbone = load(tiny_folder("bert"))
    compilation = compile_layers(backbone, [method("prefix")], 0.0, wanted)
    assert (compilation.seconds, compilation.reason, backbone.compiled) == (0, None, None)


@pytest.mark.usefixtures("no_compiler")
@pytest.mark.parametrize(
    ("model_type", "checkpointing", "specs", "dropout", "reason"),
    [
        ("deberta-v2", False, ["prefix"], 0.0, "DeBERTa's attention takes prefixes in the middle"),
        ("bert", True, ["prefix"], 0.0, "--gradient-checkpointing computes layers again"),
        ("bert", False, ["prefix"], 0.1, "--backbone-dropout draws its masks outside"),
        ("bert", False, ["full", "adapter"], 0.0, "PEFT method adapter, full changes what happens inside of layers"),
    ],
)
def test_what_cannot_be_compiled_is_said(
    model_type: str, checkpointing: bool, specs: list[str], dropout: float, reason: str, tiny_folder: Folder
) -> None:
    backbone = load(tiny_folder(model_type), checkpointing)
    compilation = compile_layers(backbone, [method(spec) for spec in specs], dropout, "on")
    assert compilation.reason is not None
    assert compilation.reason.startswith(f"Nothing is compiled, since {reason}")
    assert backbone.compiled is None


@pytest.mark.skipif(not can_pack(), reason="this PyTorch or processor has no bfloat16 products by oneDNN")
def test_packed_weights_are_not_compiled(tiny_folder: Folder) -> None:
    backbone = load_backbone(str(tiny_folder("bert")), device=CPU, dtype=torch.bfloat16)
    compilation = compile_layers(backbone, [method("prefix:length=3")], 0.0, "on")
    assert compilation.reason is not None
    assert compilation.reason.startswith("Nothing is compiled, since the weights are laid out for oneDNN")
    assert backbone.compiled is None


@pytest.mark.usefixtures("no_compiler")
@pytest.mark.parametrize("command", ["train", "matrix"])
def test_the_option_reaches_the_compiler_and_a_failure_is_a_warning(
    command: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["--compile", "on", "--precision", "fp32", "--device", "cpu", "--json"]
    if command == "train":
        words += [
            "--model",
            "tiny",
            "--task",
            "tiny/sentiment",
            "--max-steps",
            "2",
            "--out",
            str(tmp_path / "p.safetensors"),
        ]
    else:
        recipe = tmp_path / "recipe.toml"
        recipe.write_text(
            'model = "tiny"\ntargets = ["tiny/sentiment"]\nsystems = ["scratch"]\nmethods = ["prefix:length=2"]\n'
            "seeds = [0]\n[training]\nmax_steps = 2\nmax_length = 32\n"
        )
        words += [str(recipe), "--out", str(tmp_path / "results")]
    assert main([command, *words]) == 0
    output = capsys.readouterr()
    assert "The layers run uncompiled, since torch.compile failed" in output.err
    if command == "train":
        assert json.loads(output.out)["compile_seconds"] == 0
