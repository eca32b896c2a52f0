"""Where in a model its layers, their two sublayers and their neurons are: what PEFT methods and metrics hook into."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from torch import nn

from panda_fusion.errors import BackboneError


@dataclass(frozen=True)
class Layout:
    """Names of submodules (as in `base_model.named_modules()`), one per layer and in the order of the layers.

    Where layers share their modules (ALBERT), a name comes once for every layer that runs it.

    Attributes:
        layers: the layer modules.
        attention_outputs: the module whose output [N, T, hidden] is the attention sublayer's, before the residual
            is added (and before a norm that comes behind the residual).
        feedforward_outputs: the same for the feed-forward sublayer.
        neurons: the module whose output [N, T, intermediate] are the activations inside the feed-forward
            sublayer. Gated sublayers: the activated gate, whose sign decides whether a neuron is active.
    """

    layers: tuple[str, ...]
    attention_outputs: tuple[str, ...]
    feedforward_outputs: tuple[str, ...]
    neurons: tuple[str, ...]


@dataclass(frozen=True)
class _Names:
    """Names below a layer module, and the module list that holds the layers."""

    layers: str
    attention: str
    feedforward: str
    neurons: str


_BERT = _Names("encoder.layer", "attention.output.dense", "output.dense", "intermediate")
_LLAMA = _Names("layers", "self_attn.o_proj", "mlp.down_proj", "mlp.act_fn")
_T5 = _Names("encoder.block", "layer.0.SelfAttention.o", "layer.1.DenseReluDense.wo", "layer.1.DenseReluDense.act")

_NAMES = {
    "bert": _BERT,
    "roberta": _BERT,
    "xlm-roberta": _BERT,
    "camembert": _BERT,
    "electra": _BERT,
    "deberta-v2": _BERT,
    "distilbert": _Names("transformer.layer", "attention.out_lin", "ffn.lin2", "ffn.activation"),
    "modernbert": _Names("layers", "attn.Wo", "mlp.Wo", "mlp.act"),
    "albert": _Names("encoder.albert_layer_groups", "attention.dense", "ffn_output", "activation"),
    "gpt2": _Names("h", "attn.c_proj", "mlp.c_proj", "mlp.act"),
    "opt": _Names("decoder.layers", "self_attn.out_proj", "fc2", "activation_fn"),
    "llama": _LLAMA,
    "mistral": _LLAMA,
    "qwen2": _LLAMA,
    "qwen3": _LLAMA,
    "t5": _T5,
    "mt5": _T5,
    "umt5": _T5,
}

KNOWN = tuple(_NAMES)
"""Model types whose layout is known."""


def layout(model: nn.Module) -> Layout:
    """The layout of a transformers base model.

    Args:
        model: the base model: no head, and of T5 the encoder (`T5EncoderModel`).

    Raises:
        BackboneError: the layout of this architecture is not known, or its modules are not where they should be.
    """
    config: Any = model.config
    names = _NAMES.get(config.model_type)
    if names is None:
        raise BackboneError(
            f"Architecture {config.model_type!r} is not one whose sublayers are known ({', '.join(KNOWN)}); use a "
            "backbone of one of these, or a PEFT method that does not enter sublayers."
        )
    if config.model_type == "albert":
        layers = _albert_layers(config, names.layers)
    else:
        layers = tuple(f"{names.layers}.{index}" for index in range(int(config.num_hidden_layers)))

    def below(name: str) -> tuple[str, ...]:
        return tuple(f"{layer}.{name}" for layer in layers)

    found = Layout(layers, below(names.attention), below(names.feedforward), below(names.neurons))
    modules = {name for name, _ in model.named_modules(remove_duplicate=False)}
    for name in (*found.layers, *found.attention_outputs, *found.feedforward_outputs, *found.neurons):
        if name not in modules:
            raise BackboneError(
                f"Architecture {config.model_type!r} lacks its module {name!r}; this version of transformers lays it "
                "out in another way, so use one that panda-fusion was tested with."
            )
    return found


def _albert_layers(config: Any, groups: str) -> tuple[str, ...]:
    """ALBERT runs each group of layers several times in turn (`AlbertTransformer.forward`)."""
    each = int(config.num_hidden_layers) / int(config.num_hidden_groups)
    return tuple(
        f"{groups}.{int(step / each)}.albert_layers.{inner}"
        for step in range(int(config.num_hidden_layers))
        for inner in range(int(config.inner_group_num))
    )
