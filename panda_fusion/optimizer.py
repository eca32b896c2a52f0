"""AdamW over a pack: one flat buffer, one update for all prompts, each with its own learning rate and clip."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch

Tensors = Mapping[str, torch.Tensor]


class PackedParameters:
    """The trainable tensors of G prompts as one leaf tensor [G, size].

    Args:
        prompts: per prompt, its trainable tensors (no pack axis), all of the same names and shapes.
        device: where they are trained; float32 always.
    """

    def __init__(self, prompts: Sequence[Tensors], device: torch.device) -> None:
        first = prompts[0]
        self.names = sorted(first)
        self.shapes = {name: tuple(first[name].shape) for name in self.names}
        self._sizes = [first[name].numel() for name in self.names]
        rows = [torch.cat([prompt[n].detach().float().reshape(-1) for n in self.names]) for prompt in prompts]
        self.flat = torch.stack(rows).to(device).requires_grad_(True)

    def tensors(self, flat: torch.Tensor | None = None) -> dict[str, torch.Tensor]:
        """Views [G, ...] by name, of the leaf or of another [G, size] tensor. Gradients flow to it."""
        source = self.flat if flat is None else flat
        pieces = source.split(self._sizes, dim=1)
        return {
            name: piece.reshape(source.shape[0], *self.shapes[name])
            for name, piece in zip(self.names, pieces, strict=True)
        }


class PackedAdamW:
    """AdamW (Loshchilov & Hutter) without weight decay by default, every prompt on its own.

    A prompt's gradient is clipped to its own norm, its step uses its own learning rate, and a prompt whose
    loss or gradient is not finite is left as it was, from then on, without touching the others.

    Args:
        parameters: the leaf [G, size].
        learning_rates: [G] peak learning rates.
        steps: total steps; the rate falls linearly to zero over them.
        clip: largest gradient norm per prompt.
    """

    BETA1, BETA2, EPSILON = 0.9, 0.999, 1e-8

    def __init__(
        self, parameters: torch.Tensor, learning_rates: Sequence[float], steps: int, clip: float = 1.0
    ) -> None:
        self._flat = parameters
        self._rates = torch.tensor(learning_rates, dtype=torch.float32, device=parameters.device)
        self._steps = steps
        self._clip = clip
        self._mean = torch.zeros_like(parameters, requires_grad=False)
        self._square = torch.zeros_like(parameters, requires_grad=False)
        self._done = 0
        self.alive = torch.ones(parameters.shape[0], dtype=torch.bool, device=parameters.device)
        """[G] False from the step on where a prompt's loss or gradient was not finite."""

    @torch.no_grad()
    def step(self, losses: torch.Tensor) -> None:
        """Update from the leaf's gradient and clear it. `losses` [G] tell which prompts went wrong."""
        gradient = self._flat.grad
        assert gradient is not None
        norm = gradient.norm(dim=1)
        self.alive &= torch.isfinite(norm) & torch.isfinite(losses)
        factor = (self._clip / (norm + 1e-6)).clamp(max=1.0)
        gradient.mul_(factor[:, None])
        if not gradient.is_cuda and bool(self.alive.all()):
            alive = None
        else:
            # On a GPU asking whether all are alive would wait for the device; masking always is cheaper.
            alive = self.alive[:, None]
            gradient.masked_fill_(~alive, 0.0)
        self._done += 1
        self._mean.lerp_(gradient, 1 - self.BETA1)
        self._square.mul_(self.BETA2).addcmul_(gradient, gradient, value=1 - self.BETA2)
        remaining = max(0.0, 1 - (self._done - 1) / self._steps)
        bias1 = 1 - self.BETA1**self._done
        bias2 = 1 - self.BETA2**self._done
        update = self._square.sqrt().div_(bias2**0.5).add_(self.EPSILON).reciprocal_().mul_(self._mean)
        rates = self._rates * (-remaining / bias1)
        if alive is not None:
            rates = torch.where(self.alive, rates, 0.0)
        self._flat.addcmul_(update, rates[:, None])
        self._flat.grad = None
