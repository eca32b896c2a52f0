"""The task head: the one that transformers' AutoModelFor... puts on the backbone, its parameters stacked."""

from __future__ import annotations

from collections.abc import Mapping
from copy import deepcopy
from typing import Any, cast

import torch
from torch import nn
from torch.func import functional_call
from transformers import AutoModelForSequenceClassification
from transformers.modeling_outputs import BaseModelOutputWithPooling


class _PooledStub(nn.Module):
    """Stands where the base model stands: what comes in as embeddings goes out as hidden states."""

    def __init__(self, pooler: nn.Module | None) -> None:
        super().__init__()
        self.pooler = pooler

    def forward(self, *_: Any, inputs_embeds: torch.Tensor, **__: Any) -> BaseModelOutputWithPooling:
        pooled = None if self.pooler is None else self.pooler(inputs_embeds)
        return BaseModelOutputWithPooling(
            last_hidden_state=cast(torch.FloatTensor, inputs_embeds), pooler_output=pooled
        )


class Head:
    """The classification head of a backbone, run in float32 on one pooled vector per row.

    The head's own code is transformers' (with the base model replaced by a stub), so every architecture keeps
    its head: BERT a frozen pooler, dropout and a linear layer, RoBERTa and ELECTRA dense and out_proj, and so
    on. Trainable are all parameters outside the base model; their names are transformers' names.

    Args:
        config: the backbone's transformers config.
        base: the base model, for its frozen pooler.
        base_prefix: the attribute under which AutoModelFor... keeps the base model.
        outputs: classes, or 1 for regression.
        device: where the head runs.
    """

    def __init__(self, config: Any, base: nn.Module, base_prefix: str, outputs: int, device: torch.device) -> None:
        own = deepcopy(config)
        own.num_labels = outputs
        if getattr(own, "pad_token_id", None) is None:
            own.pad_token_id = 0  # heads of decoders refuse batches without one; pooling is done before
        with torch.device("meta"):
            model = AutoModelForSequenceClassification.from_config(own)
        pooler = getattr(base, "pooler", None)
        frozen = None if pooler is None else deepcopy(pooler).float().requires_grad_(False).to(device)
        setattr(model, base_prefix, _PooledStub(frozen))
        self._model = model
        self._stub_prefix = f"{base_prefix}."
        self._std = float(getattr(config, "initializer_range", 0.02))
        self.outputs = outputs
        self.device = device
        self.shapes: dict[str, tuple[int, ...]] = {
            name: tuple(parameter.shape)
            for name, parameter in model.named_parameters()
            if not name.startswith(self._stub_prefix)
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
        self, parameters: Mapping[str, torch.Tensor], pooled: torch.Tensor, dropout: float = 0.0
    ) -> torch.Tensor:
        """Logits of a pack.

        Args:
            parameters: head parameters, each [G, ...].
            pooled: [G, B, hidden], any float dtype.
            dropout: probability of the head's dropout layers; 0 outside of training.

        Returns:
            [G, B, outputs] float32.
        """
        self._set_dropout(dropout)
        features = pooled.float().unsqueeze(2)
        if features.shape[0] == 1:
            return self._logits({k: v[0] for k, v in parameters.items()}, features[0]).unsqueeze(0)
        return torch.vmap(self._logits, randomness="different")(dict(parameters), features)

    def _logits(self, parameters: dict[str, torch.Tensor], features: torch.Tensor) -> torch.Tensor:
        output = functional_call(self._model, parameters, (), {"inputs_embeds": features})
        return output.logits

    def _set_dropout(self, probability: float) -> None:
        self._model.train(probability > 0)
        for module in self._model.modules():
            if isinstance(module, nn.Dropout):
                module.p = probability
