"""The frozen layers compiled by torch.compile, for those who ask for it with `--compile on`.

Regional compilation: the forward function of the layers' class is compiled once, and all layers run the same code with
their own weights. Attention stays outside, since prefixes enter it by the state of the pass (`panda_fusion.attention`).
Everything is compiled during a warm-up of a few small passes with dynamic shapes; what would need to be compiled anew
later runs uncompiled, so that no step waits for a compiler.

A layer runs uncompiled in passes that Python code takes part in or that would need code of their own:

- transforms of outputs (adapters) and the last layer for one token are hooks, made anew for every pass;
- replaced weights (`full`) need gradients, and code that computes them, of every weight;
- dropout takes its masks from a pool on the CPU, and needs code for training mode;
- under gradient checkpointing a layer enters the injection again when it is computed a second time;
- a batch of one row, or of rows of one token, has shapes that PyTorch compiles by themselves;
- DeBERTa's attention reads the prefix in the middle of its own code;
- packed weights (`panda_fusion.packed_linear`, bfloat16 on a CPU) enter by operators that the compiler takes for its
  own.

`auto` compiles nothing. On a CPU a step in float32 takes the same time (`benchmarks/compiled.py`, all-MiniLM-L6-v2:
0.997 of the speed; matrix products, which are not compiled, are most of it), and the warm-up half a minute or more. On
a GPU, where fused small operations are worth more, it has not been measured.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any, Literal

import torch

from panda_fusion.injection import Injection, Rows
from panda_fusion.packed_linear import PackedLinear

if TYPE_CHECKING:
    from torch import nn

    from panda_fusion.backbone import Backbone
    from panda_fusion.peft_method import PEFTMethod

CompileName = Literal["auto", "on", "off"]
ROWS, TOKENS = 13, 37
"""The warm-up's batch: sizes that no model has, so that none is taken for a size of the model."""


@dataclass(frozen=True)
class Compilation:
    """What became of `--compile`.

    Attributes:
        seconds: wall-clock seconds of the warm-up; 0 where nothing was compiled.
        reason: one sentence that says why nothing was compiled though it was asked for; None otherwise.
    """

    seconds: float = 0.0
    reason: str | None = None


class CompiledLayers:
    """Compiled forward functions of a model's layers.

    Args:
        model: the base model, frozen and in evaluation mode.
        names: its layer modules (`BackboneShape.layer_modules`).

    Attributes:
        warming_up: whether passes compile what is not compiled yet; if not, that runs as it is.
    """

    def __init__(self, model: nn.Module, names: Sequence[str]) -> None:
        from transformers import AttentionInterface

        from panda_fusion import attention

        self.warming_up = True
        # Traced, the attention function would be compiled once for every layer: it counts its calls.
        AttentionInterface.register(attention.NAME, torch.compiler.disable(attention.attention))
        layers = [model.get_submodule(name) for name in dict.fromkeys(names)]
        shared = {kind: torch.compile(kind.forward, dynamic=True) for kind in {type(layer) for layer in layers}}
        self._layers: list[tuple[nn.Module, list[nn.Module], Callable[..., Any]]] = [
            (layer, list(layer.modules()), partial(shared[type(layer)], layer)) for layer in layers
        ]

    def fit(self, injection: Injection | None, dropout: float, checkpointed: bool, count: int, width: int) -> bool:
        """Whether a pass can use them.

        Args:
            injection: what the PEFT method adds.
            dropout: probability of the backbone's own dropout.
            checkpointed: whether the backward pass computes layers again.
            count: rows of the batch.
            width: tokens of a row, virtual ones included.
        """
        if injection is not None and (injection.outputs or injection.weights):
            return False
        return not dropout and not checkpointed and count > 1 and width > 1

    @contextmanager
    def in_use(self) -> Iterator[None]:
        """Let the layers that have no hooks run compiled code in the block."""
        free = [
            (layer, forward)
            for layer, modules, forward in self._layers
            if not any(module._forward_hooks or module._forward_pre_hooks for module in modules)
        ]
        for layer, forward in free:
            layer.forward = forward
        try:
            with torch.compiler.set_stance("default" if self.warming_up else "eager_on_recompile"):
                yield
        finally:
            for layer, _ in free:
                del layer.forward  # the class's own again


def compile_layers(
    backbone: Backbone, methods: Sequence[PEFTMethod], dropout: float, wanted: CompileName
) -> Compilation:
    """Compile a backbone's layers if the user wants it and a method gains by it; never fails.

    Args:
        backbone: a frozen backbone; its `compiled` is set.
        methods: the PEFT methods that will be trained on it.
        dropout: probability of the backbone's own dropout in training.
        wanted: `--compile`; `auto` is `off` on every device.
    """
    if wanted != "on":
        return Compilation()
    reason = _obstacle(backbone, methods, dropout)
    if reason is not None:
        return Compilation(reason=f"Nothing is compiled, since {reason}.")
    started = time.perf_counter()
    try:
        backbone.compiled = CompiledLayers(backbone._model, backbone.shape.layer_modules)
        _warm_up(backbone)
        backbone.compiled.warming_up = False
    except Exception as error:  # whatever the compiler raises; without it everything works
        backbone.compiled = None
        advice = "a C++ compiler (g++)" if backbone.device.type == "cpu" else "Triton and a C compiler"
        return Compilation(
            reason=f"The layers run uncompiled, since torch.compile failed ({_cause(error)}); it needs {advice}."
        )
    backbone.compile_seconds = time.perf_counter() - started
    return Compilation(seconds=backbone.compile_seconds)


def _obstacle(backbone: Backbone, methods: Sequence[PEFTMethod], dropout: float) -> str | None:
    """Why no training step could use compiled layers; None where one can."""
    if backbone.info.architecture == "deberta-v2":
        return "DeBERTa's attention takes prefixes in the middle of its own code, which cannot be compiled"
    if any(isinstance(module, PackedLinear) for module in backbone._model.modules()):
        return "the weights are laid out for oneDNN in bfloat16 on a CPU, which gains more"
    if backbone.gradient_checkpointing:
        return "--gradient-checkpointing computes layers again, which compiled code cannot"
    if dropout:
        return "--backbone-dropout draws its masks outside of what can be compiled; leave one of the two out"
    if not any(_is_plain(method, backbone) for method in methods):
        names = ", ".join(sorted({method.name for method in methods}))
        return f"PEFT method {names} changes what happens inside of layers; prefix and prompt do not"
    return None


def _is_plain(method: PEFTMethod, backbone: Backbone) -> bool:
    """Whether a method leaves the insides of layers alone, attention apart."""
    if not method.packable:
        return False
    tensors = method.create(backbone, torch.Generator().manual_seed(0))
    injection = method.inject({name: t[None].to(backbone.device) for name, t in tensors.items()}, backbone.shape)
    return not (injection.outputs or injection.weights)


def _warm_up(backbone: Backbone) -> None:
    """Run every kind of pass once: with gradients from the first layer on, from the second on, and without any."""
    shape, device = backbone.shape, backbone.device
    place = (1, shape.layers, 1, shape.kv_heads, shape.head_dim)
    ids = torch.arange(ROWS * TOKENS, device=device).view(ROWS, TOKENS) % backbone.vocabulary
    lengths = torch.full((ROWS,), TOKENS, device=device)

    def states(injection: Injection) -> torch.Tensor:
        return backbone.hidden_states(ids, lengths, None, injection, Rows(1))

    def prefix() -> Injection:
        key, value = (torch.zeros(place, device=device, requires_grad=True) for _ in range(2))
        return Injection(key=key, value=value)

    def prompt() -> Injection:
        return Injection(embedding=torch.zeros((1, 1, shape.input_width), device=device, requires_grad=True))

    for injection in (prefix, prompt):
        states(injection()).float().sum().backward()
        with torch.inference_mode():
            states(injection())


def _cause(error: BaseException) -> str:
    """The first line of what the compiler says, without a final stop."""
    error = getattr(error, "inner_exception", error)  # what a backend raised, wrapped in advice on debugging
    text = str(error).strip()
    return f"{type(error).__name__}: {text.splitlines()[0] if text else 'no message'}".rstrip(".:")
