"""The packed optimizer, against torch's AdamW, gradient clipping and linear schedule for each prompt alone."""

from __future__ import annotations

import pytest
import torch
from engine_samples import largest

from panda_fusion.optimizer import PackedAdamW, PackedParameters

STEPS = 30
RATES = (1e-3, 1e-2, 0.3, 0.0)
CPU = torch.device("cpu")


def prompts(seed: int = 0) -> list[dict[str, torch.Tensor]]:
    generator = torch.Generator().manual_seed(seed)
    shapes = {"b.weight": (3, 4), "a": (5,), "c": (2, 2, 2)}
    return [{n: torch.randn(s, generator=generator) for n, s in shapes.items()} for _ in RATES]


def objective(place: int, step: int, tensors: dict[str, torch.Tensor]) -> torch.Tensor:
    """Another loss for each prompt and step; its gradients are now above and now below the clip norm of 1."""
    generator = torch.Generator().manual_seed(1000 * place + step)
    scale = (0.02, 1.0, 30.0)[step % 3]
    return (
        scale
        * torch.stack(
            [
                ((tensors[name] - torch.randn(tensors[name].shape, generator=generator)) ** 2).mean()
                for name in sorted(tensors)
            ]
        ).sum()
    )


def reference(place: int, start: dict[str, torch.Tensor], clip: float) -> dict[str, torch.Tensor]:
    tensors = {name: tensor.clone().requires_grad_() for name, tensor in start.items()}
    optimizer = torch.optim.AdamW(tensors.values(), lr=RATES[place], weight_decay=0.0)
    schedule = torch.optim.lr_scheduler.LinearLR(optimizer, 1.0, 0.0, total_iters=STEPS)
    for step in range(STEPS):
        optimizer.zero_grad()
        objective(place, step, tensors).backward()
        torch.nn.utils.clip_grad_norm_(tensors.values(), clip)
        optimizer.step()
        schedule.step()
    return tensors


@pytest.mark.parametrize("clip", [1.0, 0.1])
def test_thirty_steps_equal_torch(clip: float) -> None:
    parameters = PackedParameters(prompts(), CPU)
    optimizer = PackedAdamW(parameters.flat, RATES, STEPS, clip)
    for step in range(STEPS):
        tensors = parameters.tensors()
        losses = torch.stack(
            [
                objective(place, step, {name: tensor[place] for name, tensor in tensors.items()})
                for place in range(len(RATES))
            ]
        )
        losses.sum().backward()
        optimizer.step(losses.detach())
    found = parameters.tensors(parameters.flat.detach())
    for place, start in enumerate(prompts()):
        for name, expected in reference(place, start, clip).items():
            assert largest(found[name][place], expected) <= 1e-6, (place, name)
            moved = largest(expected, start[name])
            assert moved > 1e-2 if RATES[place] >= 1e-2 else moved < 0.1


def test_tensors_are_views_by_name_in_their_own_shape() -> None:
    parameters = PackedParameters(prompts(), CPU)
    for place, start in enumerate(prompts()):
        for name, tensor in parameters.tensors().items():
            assert torch.equal(tensor[place], start[name])
    assert parameters.flat.dtype == torch.float32
    assert parameters.flat.is_leaf


@pytest.mark.parametrize("wrong", ["loss", "gradient"])
@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_a_prompt_that_is_not_finite_stops_alone(wrong: str, value: float) -> None:
    """It keeps its last good tensors for good; the others go on as if it were not there."""
    finals = []
    for broken in (False, True):
        parameters = PackedParameters(prompts(), CPU)
        optimizer = PackedAdamW(parameters.flat, [0.1] * 4, STEPS)
        before = None
        for step in range(6):
            losses = torch.stack([parameters.flat[g].square().sum() for g in range(4)])
            losses.sum().backward()
            told = losses.detach().clone()
            if broken and step == 3:
                before = parameters.flat[1].detach().clone()
                if wrong == "loss":
                    told[1] = value
                else:
                    assert parameters.flat.grad is not None
                    parameters.flat.grad[1, 2] = value
            optimizer.step(told)
        if broken:
            assert before is not None
            assert torch.equal(parameters.flat[1], before)
            assert optimizer.alive.tolist() == [True, False, True, True]
        else:
            assert optimizer.alive.tolist() == [True] * 4
        finals.append(parameters.flat.detach().clone())
    others = [0, 2, 3]
    assert torch.equal(finals[0][others], finals[1][others])
