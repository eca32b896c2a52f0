"""Attention on the CPU against PyTorch's own, and the dropout masks against what dropout must do."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
import torch
from engine_samples import CLASSES, encoded, largest, method, pack
from scipy.stats import binomtest, chisquare
from torch.nn import functional as F

from panda_fusion.backbone import Backbone
from panda_fusion.cpu_attention import attend
from panda_fusion.dataset import gather
from panda_fusion.injection import Injection, Rows
from panda_fusion.last_layer import can_read_one_token
from panda_fusion.mask_pool import SIZE, MaskPool, PooledDropout, dropout_from
from panda_fusion.testing import MODEL_TYPES

Tiny = Callable[[str], Backbone]
N, HEADS, TEXT, PREFIX, SIZE_OF_HEAD = 3, 2, 7, 5, 8


def inputs(dtype: torch.dtype, prefix: bool, needed: str) -> dict[str, torch.Tensor | None]:
    """Random tensors by name; gradients for those in `needed`."""
    generator = torch.Generator().manual_seed(0)

    def draw(length: int, name: str) -> torch.Tensor:
        # Heads behind tokens, as models make them: not contiguous.
        tensor = torch.randn((N, length, HEADS, SIZE_OF_HEAD), generator=generator, dtype=torch.float64)
        return tensor.to(dtype).transpose(1, 2).detach().requires_grad_(name in needed.split())

    made: dict[str, torch.Tensor | None] = {name: draw(TEXT, name) for name in ("query", "key", "value")}
    for name in ("prefix_key", "prefix_value"):
        made[name] = draw(PREFIX, name) if prefix else None
    return made


def run(made: dict[str, torch.Tensor | None], bias: torch.Tensor | None, ours: bool) -> torch.Tensor:
    query, key, value, *prefix = made.values()
    assert query is not None
    assert key is not None
    assert value is not None
    first, second = prefix
    if ours:
        return attend(query, key, value, bias, 0.3, None if first is None or second is None else (first, second))
    if first is not None and second is not None:
        key, value = torch.cat((first, key), 2), torch.cat((second, value), 2)
        bias = None if bias is None else F.pad(bias, (PREFIX, 0))
    return F.scaled_dot_product_attention(query, key, value, attn_mask=bias, scale=0.3)


def padding_bias(dtype: torch.dtype) -> torch.Tensor:
    """Rows of different lengths."""
    keep = torch.arange(TEXT) < torch.tensor([TEXT, 3, 1])[:, None]
    return torch.zeros(N, TEXT, dtype=dtype).masked_fill(~keep, torch.finfo(dtype).min)[:, None, None]


@pytest.mark.parametrize("needed", ["query key value prefix_key prefix_value", "prefix_key prefix_value", "query", ""])
@pytest.mark.parametrize("prefix", [True, False])
@pytest.mark.parametrize("masked", [True, False])
@pytest.mark.parametrize(
    ("dtype", "tolerance"), [(torch.float64, 1e-12), (torch.float32, 2e-6), (torch.bfloat16, 0.03)]
)
def test_values_and_gradients_are_pytorchs(
    dtype: torch.dtype, tolerance: float, masked: bool, prefix: bool, needed: str
) -> None:
    bias = padding_bias(dtype) if masked else None
    weights = torch.randn(N, HEADS, TEXT, SIZE_OF_HEAD, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    found, expected = inputs(dtype, prefix, needed), inputs(torch.float64, prefix, needed)
    output = run(found, bias, ours=True)
    reference = run(expected, None if bias is None else padding_bias(torch.float64), ours=False)
    assert largest(output.double(), reference) <= tolerance
    if not output.requires_grad:
        return
    (output * weights.to(dtype)).sum().backward()
    (reference * weights).sum().backward()
    for name, tensor in found.items():
        other = expected[name]
        if tensor is None or other is None:
            continue
        assert (tensor.grad is None) == (name not in needed.split())
        if tensor.grad is not None and other.grad is not None:
            assert largest(tensor.grad.double(), other.grad) <= 4 * tolerance


def test_a_bias_that_is_learnt_has_pytorchs_gradient() -> None:
    """T5's position bias, shared by the rows, when the whole model is tuned."""
    grads = []
    for ours in (True, False):
        bias = torch.zeros(1, HEADS, TEXT, TEXT, dtype=torch.float64).requires_grad_()
        run(inputs(torch.float64, True, "query"), bias, ours).square().sum().backward()
        grads.append(bias.grad)
    assert grads[0] is not None
    assert grads[1] is not None
    assert largest(grads[0], grads[1]) <= 1e-12


def test_dropped_weights_have_the_gradient_of_what_was_computed() -> None:
    """The backward pass uses the masks of the forward pass: against finite differences under fixed masks."""
    torch.manual_seed(0)
    pool = MaskPool(0.4, torch.float64)
    made = [t for t in inputs(torch.float64, True, "query key value prefix_key prefix_value").values() if t is not None]

    def function(*tensors: torch.Tensor) -> torch.Tensor:
        torch.manual_seed(3)  # the same places in the pool at every call
        with dropout_from(pool):
            return attend(tensors[0], tensors[1], tensors[2], None, 0.3, (tensors[3], tensors[4]), 0.4)

    assert torch.autograd.gradcheck(function, made)
    with dropout_from(pool):
        plain = attend(made[0], made[1], made[2], None, 0.3, (made[3], made[4]))
    assert largest(function(*made), plain) > 0.1


@pytest.mark.parametrize("probability", [0.1, 0.37, 0.5])
def test_masks_keep_the_right_share_and_the_mean(probability: float) -> None:
    torch.manual_seed(1)
    pool = MaskPool(probability, torch.float32)
    ones = torch.ones(300_000)
    masks = torch.stack([pool.apply(ones, pool.draw(ones)) for _ in range(4)])
    dropped = int((masks == 0).sum())
    assert binomtest(dropped, masks.numel(), probability).pvalue > 1e-4
    values = masks[masks != 0]
    assert bool((values == values[0]).all())
    assert float(values[0]) == pytest.approx(1 / (1 - probability), rel=1e-4)


def test_masks_are_independent_between_calls_steps_and_neighbours() -> None:
    """Pairs of values (two calls, two steps, two neighbours) are dropped as often as independent draws are."""
    torch.manual_seed(2)
    probability = 0.3
    pool = MaskPool(probability, torch.float32)
    ones = torch.ones(400_000)
    first = pool.apply(ones, pool.draw(ones)) == 0
    second = pool.apply(ones, pool.draw(ones)) == 0
    for _ in range(4):
        pool.refresh()
    later = pool.apply(ones, pool.draw(ones)) == 0
    expected = np.array([(1 - probability) ** 2, 0.21, 0.21, probability**2])
    for one, other in ((first, second), (first, later), (first[1:], first[:-1]), (first[384:], first[:-384])):
        pairs = (2 * one.long() + other.long()).bincount(minlength=4)
        assert chisquare(pairs.numpy(), expected / expected.sum() * len(one)).pvalue > 1e-4


def test_a_tensor_larger_than_the_pool_is_masked_throughout() -> None:
    torch.manual_seed(3)
    pool = MaskPool(0.5, torch.bfloat16)
    ones = torch.ones(SIZE + 1000, dtype=torch.bfloat16)
    found = pool.apply(ones, pool.draw(ones))
    for part in found.split(SIZE // 4):
        assert 0.4 < float((part == 0).float().mean()) < 0.6


def test_layers_drop_only_in_training_and_repeat_with_the_seed() -> None:
    layer = PooledDropout(0.5)
    ones = torch.ones(64, 64, requires_grad=True)

    def once() -> torch.Tensor:
        torch.manual_seed(7)
        with dropout_from(MaskPool(0.5, torch.float32)):
            return layer(ones)

    assert torch.equal(once(), once())
    assert not torch.equal(once(), ones)
    dropped = once()
    dropped.sum().backward()
    assert ones.grad is not None
    assert torch.equal(ones.grad, dropped.detach())
    assert torch.equal(layer.eval()(ones), ones)


@pytest.mark.parametrize("spec", ["prefix:length=3", "prompt:length=3", None])
@pytest.mark.parametrize("model_type", [name for name in MODEL_TYPES if can_read_one_token(name)])
def test_the_last_layer_for_one_token_is_that_of_all(model_type: str, spec: str | None, tiny: Tiny) -> None:
    """`forward` leaves the last layer of other tokens out; `hidden_states` computes them. Values and gradients."""
    backbone = tiny(model_type)
    data = encoded(backbone, CLASSES, 6)
    batch = gather(data, torch.arange(6), data.input_ids.shape[1])
    grads = []
    outputs = []
    for whole in (False, True):
        tensors = {}
        injection: Injection | None = None
        if spec is not None:
            tensors = {name: tensor.requires_grad_() for name, tensor in pack(method(spec), backbone, 2).items()}
            injection = method(spec).inject(tensors, backbone.shape)
        arguments = (batch.input_ids, batch.lengths, batch.token_types, injection, Rows(1 if spec is None else 2))
        pooled = backbone.hidden_states(*arguments)[:, 0] if whole else backbone.forward(*arguments)
        outputs.append(pooled)
        if spec is not None:
            pooled.square().sum().backward()
            grads.append({name: tensor.grad for name, tensor in tensors.items()})
    assert largest(outputs[0], outputs[1]) <= 2e-6
    for name in grads[0] if grads else ():
        assert largest(grads[0][name], grads[1][name]) <= 1e-4
        assert float(grads[0][name].abs().max()) > 1e-3
