"""The task head: the one that transformers' AutoModelFor... puts on the backbone, its parameters stacked."""

from __future__ import annotations

from collections.abc import Mapping
from copy import deepcopy
from typing import Any, cast

import torch
from torch import nn
from torch.func import functional_call
from transformers import (
    AutoModelForMultipleChoice,
    AutoModelForQuestionAnswering,
    AutoModelForSequenceClassification,
    AutoModelForTokenClassification,
)
from transformers.modeling_outputs import BaseModelOutputWithPoolingAndCrossAttentions

from panda_fusion.backbone import T5_ENCODERS
from panda_fusion.errors import BackboneError

_MODELS: dict[str, Any] = {
    "classification": AutoModelForSequenceClassification,
    "multiple-choice": AutoModelForMultipleChoice,
    "token-classification": AutoModelForTokenClassification,
    "extractive-qa": AutoModelForQuestionAnswering,
}


def head_kind(kind: str) -> str:
    """The task kind whose head a kind uses: a regression has the head of a classification."""
    return "classification" if kind == "regression" else kind


class _PooledStub(nn.Module):
    """Stands where the base model stands: what comes in as embeddings goes out as hidden states."""

    def __init__(self, pooler: nn.Module | None) -> None:
        super().__init__()
        self.pooler = pooler

    def forward(self, *_: Any, inputs_embeds: torch.Tensor, **__: Any) -> BaseModelOutputWithPoolingAndCrossAttentions:
        pooled = None
        if isinstance(self.pooler, nn.Linear):  # ALBERT keeps the parts of its pooler side by side
            pooled = self.pooler(inputs_embeds[:, 0]).tanh()
        elif self.pooler is not None:
            pooled = self.pooler(inputs_embeds)
        return BaseModelOutputWithPoolingAndCrossAttentions(
            last_hidden_state=cast(torch.FloatTensor, inputs_embeds), pooler_output=pooled
        )


class Head:
    """The head of a backbone for one task kind, run in float32.

    The head's own code is transformers' (with the base model replaced by a stub), so every architecture keeps
    its head: BERT a frozen pooler, dropout and a linear layer, RoBERTa and ELECTRA dense and out_proj, and so
    on. Trainable are all parameters outside the base model; their names are transformers' names. Where a head
    for multiple choice needs a pooler that its backbone was loaded without (RoBERTa), the pooler is trained with it.
    T5's own heads sit behind its decoder, but for the one of token classification (dropout and a linear layer on the
    encoder): its encoder has that one for every kind.

    Args:
        config: the backbone's transformers config.
        base: the base model, for its frozen pooler.
        outputs: classes or tags, 1 for regression and multiple choice, 2 for extractive QA.
        device: where the head runs.
        kind: task kind.

    Raises:
        BackboneError: transformers has no head for this kind on this architecture.
    """

    def __init__(
        self,
        config: Any,
        base: nn.Module,
        outputs: int,
        device: torch.device,
        kind: str = "classification",
    ) -> None:
        own = deepcopy(config)
        own.num_labels = outputs
        if getattr(own, "pad_token_id", None) is None:
            own.pad_token_id = 0  # heads of decoders refuse batches without one; pooling is done before
        self.kind = head_kind(kind)
        self._is_t5 = config.model_type in T5_ENCODERS
        with torch.device("meta"):
            try:
                model = (AutoModelForTokenClassification if self._is_t5 else _MODELS[self.kind]).from_config(own)
            except ValueError as error:
                raise BackboneError(
                    f"Architecture {config.model_type!r} has no head for {kind} tasks in transformers; use a backbone "
                    "that has one (docs/support.md)."
                ) from error
        base_prefix = model.base_model_prefix  # Llama's question answering has another one than its other heads
        own_pooler = getattr(getattr(model, base_prefix), "pooler", None)
        pooler = getattr(base, "pooler", None)
        frozen = None if pooler is None else deepcopy(pooler).float().requires_grad_(False).to(device)
        missing = self.kind == "multiple-choice" and frozen is None and own_pooler is not None
        setattr(model, base_prefix, _PooledStub(own_pooler if missing else frozen))
        self._model = model
        self._std = float(getattr(config, "initializer_range", 0.02))
        self.outputs = outputs
        self.device = device
        self._base_prefix = base_prefix
        self._pooler_names = {name for name, _ in model.named_parameters() if name.startswith(f"{base_prefix}.")}
        self.shapes: dict[str, tuple[int, ...]] = {
            name: tuple(parameter.shape)
            for name, parameter in model.named_parameters()
            if missing or not name.startswith(f"{base_prefix}.")
        }
        """Name and shape of every trainable parameter (without pack axis)."""

    def create(self, generator: torch.Generator) -> dict[str, torch.Tensor]:
        """New parameters of one head, float32 on the CPU: normal weights with the config's standard deviation, zero
        biases, unit norms. That is how transformers draws them, ModernBERT's apart, which has a rule of its own."""
        created = {}
        for name, shape in self.shapes.items():
            if name.endswith("bias"):
                created[name] = torch.zeros(shape)
            elif len(shape) == 1:
                created[name] = torch.ones(shape)
            else:
                created[name] = torch.randn(shape, generator=generator) * self._std
        return created

    def __call__(
        self,
        parameters: Mapping[str, torch.Tensor],
        features: torch.Tensor,
        dropout: float = 0.0,
        weights: Mapping[str, torch.Tensor] | None = None,
    ) -> torch.Tensor:
        """Logits of a pack.

        Args:
            parameters: head parameters, each [G, ...].
            features: any float dtype: pooled vectors [G, B, hidden]; for multiple choice those of R choices
                [G, B, R, hidden]; for token-classification states of words [G, B, S, hidden]; for extractive QA states
                of all tokens [G, B, T, hidden].
            dropout: probability of the head's dropout layers; 0 outside of training.
            weights: parameters of the base model that a PEFT method replaces (`Injection.weights`), each [G, ...];
                those of the pooler, which runs here, are taken in its place.

        Returns:
            float32 [G, B, outputs]; [G, B, R]; [G, B, S, outputs]; [G, B, 2, T].
        """
        self._set_dropout(dropout)
        states = features.float()
        if weights:
            pooler = {f"{self._base_prefix}.{name}": tensor for name, tensor in weights.items()}
            parameters = dict(parameters) | {name: pooler[name] for name in pooler.keys() & self._pooler_names}
        if self.kind in ("classification", "multiple-choice"):
            states = states.unsqueeze(-2)  # a text of one token, the pooled one
        if states.shape[0] == 1:
            return self._logits({k: v[0] for k, v in parameters.items()}, states[0]).unsqueeze(0)
        return torch.vmap(self._logits, randomness="different")(dict(parameters), states)

    def _logits(self, parameters: dict[str, torch.Tensor], states: torch.Tensor) -> torch.Tensor:
        output = functional_call(self._model, parameters, (), {"inputs_embeds": states})
        if self._is_t5:
            return self._t5_logits(output.logits)
        if self.kind == "extractive-qa":
            return torch.stack((output.start_logits, output.end_logits), dim=1)
        return output.logits

    def _t5_logits(self, logits: torch.Tensor) -> torch.Tensor:
        """What comes out of the one linear layer [..., tokens, outputs], in the shape of the task kind."""
        if self.kind == "classification":
            return logits.squeeze(-2)
        if self.kind == "multiple-choice":
            return logits.squeeze(-1).squeeze(-1)
        return logits.transpose(1, 2) if self.kind == "extractive-qa" else logits

    def _set_dropout(self, probability: float) -> None:
        self._model.train(probability > 0)
        for module in self._model.modules():
            if isinstance(module, nn.Dropout):
                module.p = probability
