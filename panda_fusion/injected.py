"""A forward pass with an injection: prefixes, transformed outputs, and layers that are computed again.

Gradient checkpointing keeps no activations inside of layers and computes them again in the backward pass, when the
forward pass and what it injected are over. So a checkpointed layer remembers how many attention calls and
module calls had been made when it started, and enters the injection there again.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager, nullcontext
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import nn
from torch.utils.checkpoint import checkpoint

from panda_fusion.attention import PrefixScope, prefix_scope
from panda_fusion.errors import BackboneError
from panda_fusion.injection import Injection, OutputTransform, Rows
from panda_fusion.replaced_weights import replaced_weights


@dataclass
class _Pass:
    """One forward pass: what is injected, and how far the pass has come."""

    model: nn.Module
    injection: Injection
    rows: Rows
    count: int
    key: torch.Tensor | None
    value: torch.Tensor | None
    weights: dict[str, torch.Tensor]
    dropout: float
    scope: PrefixScope | None = None
    calls: dict[str, int] = field(default_factory=dict)


@contextmanager
def injected(
    model: nn.Module,
    injection: Injection | None,
    rows: Rows,
    count: int,
    dtype: torch.dtype,
    dropout: float = 0.0,
    checkpointed: Sequence[str] = (),
) -> Iterator[None]:
    """Let the forward pass in the block see an injection's prefixes, transforms and weights, and set the dropout.

    Args:
        model: the base model.
        injection: what the PEFT method adds; None: nothing.
        rows: which prompt each row uses.
        count: N, rows of the batch.
        dtype: dtype that prefixes and weights are cast to.
        dropout: probability for the model's own dropout; 0: evaluation mode.
        checkpointed: names of layer modules whose activations are computed again in the backward pass.

    Raises:
        BackboneError: a module that is to be transformed or a weight that is to be replaced does not exist, the model
            made another number of calls than the injection has prefixes or transforms for, or a pack of several
            prompts replaces weights.
    """
    injection = injection or Injection()
    key, value = (None if part is None else part.to(dtype) for part in (injection.key, injection.value))
    if injection.weights and rows.prompts > 1:
        raise BackboneError(
            "The PEFT method changes the backbone's own weights, so one prompt fits into a forward pass and not a pack "
            f"of {rows.prompts}; run its prompts one at a time."
        )
    weights = {name: tensor[0].to(dtype) for name, tensor in injection.weights.items()}
    one = _Pass(model, injection, rows, count, key, value, weights, dropout)
    with ExitStack() as stack:
        _enter(stack, one, resumed=None)
        if checkpointed:
            stack.enter_context(_checkpointed(one, checkpointed))
        yield


def _enter(stack: ExitStack, one: _Pass, resumed: tuple[int, Mapping[str, int]] | None) -> None:
    """Enter a pass at its beginning, or where the attention calls and module calls in `resumed` have been made."""
    stack.enter_context(_dropout(one.model, one.dropout))
    if one.weights:
        stack.enter_context(replaced_weights(one.model, one.weights))
    if one.key is not None:
        assert one.value is not None
        at = None if resumed is None else resumed[0]
        scope = stack.enter_context(prefix_scope(one.key, one.value, one.rows, at))
        if resumed is None:
            one.scope = scope
    if one.injection.outputs:
        stack.enter_context(_transformed(one, None if resumed is None else resumed[1]))


@contextmanager
def _dropout(model: nn.Module, probability: float) -> Iterator[None]:
    """Run the block with this dropout. The model is in evaluation mode before and after it."""
    if not probability:
        yield
        return
    model.train()
    for module in model.modules():
        if isinstance(module, nn.Dropout):
            module.p = probability
        # Probabilities that decoders and T5 keep as numbers and hand to functions.
        for name in ("dropout", "attention_dropout", "activation_dropout"):
            if isinstance(getattr(module, name, None), float):
                setattr(module, name, probability)
        if hasattr(module, "layerdrop"):
            module.layerdrop = 0.0  # type: ignore[assignment]  # a skipped layer would shift the prefixes of the others
    try:
        yield
    finally:
        model.eval()


@contextmanager
def _transformed(one: _Pass, resumed: Mapping[str, int] | None) -> Iterator[None]:
    """Replace submodules' outputs by their transforms for the length of the block."""
    modules = dict(one.model.named_modules())
    calls = one.calls if resumed is None else dict(resumed)
    transforms = one.injection.outputs
    handles = []
    try:
        for name, transform in transforms.items():
            if name not in modules:
                raise BackboneError(f"The PEFT method transforms module {name!r}, which the backbone lacks.")
            handles.append(modules[name].register_forward_hook(_output_hook(name, transform, calls, one)))
        yield
    finally:
        for handle in handles:
            handle.remove()
    if resumed is None:
        for name, transform in transforms.items():
            if isinstance(transform, tuple) and calls.get(name, 0) != len(transform):
                raise BackboneError(_wrong_calls(name, len(transform), f"{calls.get(name, 0)} times"))


def _output_hook(
    name: str, transform: OutputTransform | tuple[OutputTransform, ...], calls: dict[str, int], one: _Pass
) -> Callable[[Any, Any, Any], Any]:
    def hook(_module: Any, _inputs: Any, output: Any) -> Any:
        call = calls[name] = calls.get(name, 0) + 1
        own = transform
        if isinstance(own, tuple):
            if call > len(own):
                raise BackboneError(_wrong_calls(name, len(own), "more often"))
            own = own[call - 1]
        if isinstance(output, tuple):
            return (_apply(own, output[0], one), *output[1:])
        return _apply(own, output, one)

    return hook


def _apply(transform: OutputTransform, output: torch.Tensor, one: _Pass) -> torch.Tensor:
    if output.dim() > 2:
        return transform(output, one.rows)
    # OPT runs its feed-forward sublayer on [N * T, features].
    folded = output.view(one.count, -1, output.shape[-1])
    return transform(folded, one.rows).reshape(output.shape[0], -1)


def _wrong_calls(name: str, expected: int, found: str) -> str:
    return (
        f"The PEFT method has transforms for {expected} calls of module {name!r} in one forward pass, but the backbone "
        f"calls it {found}; its module layout and its layers do not agree."
    )


@contextmanager
def _checkpointed(one: _Pass, names: Sequence[str]) -> Iterator[None]:
    """Run the named layers under gradient checkpointing for the length of the block."""
    layers = [one.model.get_submodule(name) for name in dict.fromkeys(names)]
    for layer in layers:
        layer.forward = _recomputing(one, layer.forward)
    try:
        yield
    finally:
        for layer in layers:
            del layer.forward  # the class's own again


def _recomputing(one: _Pass, forward: Callable[..., Any]) -> Callable[..., Any]:
    def contexts() -> tuple[AbstractContextManager[None], AbstractContextManager[None]]:
        made = 0 if one.scope is None else one.scope.calls
        return nullcontext(), _Resumed(one, made, dict(one.calls))

    def run(*arguments: Any, **named: Any) -> Any:
        return checkpoint(forward, *arguments, use_reentrant=False, context_fn=contexts, **named)

    return run


class _Resumed(AbstractContextManager[None]):
    """The pass entered again at a layer; as often as the layer is computed again."""

    def __init__(self, one: _Pass, attention_calls: int, calls: dict[str, int]) -> None:
        self._one = one
        self._at = (attention_calls, calls)
        self._stacks: list[ExitStack] = []

    def __enter__(self) -> None:
        with ExitStack() as stack:
            _enter(stack, self._one, self._at)
            self._stacks.append(stack.pop_all())

    def __exit__(self, *error: Any) -> None:
        self._stacks.pop().__exit__(*error)
