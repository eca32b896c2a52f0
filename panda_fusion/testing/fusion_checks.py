"""What a fusion must fulfil."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import TYPE_CHECKING

from panda_fusion.errors import OptionError
from panda_fusion.fusion import Fusion, PredictionFusion, PromptFusion
from panda_fusion.method import Options
from panda_fusion.testing.check import Check, require

if TYPE_CHECKING:
    import torch

    from panda_fusion.fusion import TrainingView

EXAMPLES = 12
CLASSES = 3
SIMILARITIES = (0.9, 0.4, 0.2)


def check_fusion(method_type: type[Fusion], options: Options | None = None, name: str = "checked") -> Iterator[Check]:
    """Checks of a fusion of prompts or predictions, with one, two and three sources.

    Args:
        method_type: the class.
        options: its options; None takes the defaults.
        name: what the instance is called.
    """
    method = method_type(options)
    method.name = name
    counts = [count for count in (1, 2, 3) if _takes(method, count)]

    def right_base() -> None:
        require(
            isinstance(method, (PromptFusion, PredictionFusion)),
            "a fusion must subclass PromptFusion (early) or PredictionFusion (late), not Fusion itself",
        )

    def some_count() -> None:
        require(counts, "check_sources refuses one, two and three sources")

    def scale() -> None:
        for count in counts:
            for similarities in (SIMILARITIES[:count], tuple(-value for value in SIMILARITIES[:count])):
                found = method.kd_scale(similarities)
                require(
                    isinstance(found, float) and math.isfinite(found),
                    f"kd_scale({list(similarities)}) is {found!r}; expected a finite float",
                )

    yield Check("is a fusion of prompts or of predictions", right_base)
    yield Check("takes some number of sources", some_count)
    yield Check("kd_scale is a finite float", scale)
    for count in counts:
        if isinstance(method, PromptFusion):
            yield from _prompt_checks(method, count)
        elif isinstance(method, PredictionFusion):
            yield from _prediction_checks(method, count)


def _prompt_checks(method: PromptFusion, count: int) -> Iterator[Check]:
    import torch

    def tensors() -> dict[str, torch.Tensor]:
        generator = torch.Generator().manual_seed(0)
        shapes = {"key": (2, 5, 4, 6), "bias": (7,)}
        return {name: torch.randn((count, *shape), generator=generator) for name, shape in shapes.items()}

    def fuse(given: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        return method.fuse(given, torch.tensor(SIMILARITIES[:count]))

    def shapes() -> None:
        given = tensors()
        fused = fuse(given)
        require(set(fused) == set(given), f"tensors {sorted(given)} became {sorted(fused)}; expected no change")
        for name, tensor in fused.items():
            require(
                tensor.shape == given[name].shape[1:],
                f"{name!r} {list(given[name].shape)} became {list(tensor.shape)}; expected it without K",
            )
            require(tensor.dtype == torch.float32, f"{name!r} became {tensor.dtype}; expected float32")
            require(bool(tensor.isfinite().all()), f"{name!r} is not finite after the fusion")

    def unchanged() -> None:
        given, similarities = tensors(), torch.tensor(SIMILARITIES[:count])
        fused = method.fuse(given, similarities)
        for tensor in fused.values():
            tensor.add_(1)  # what is returned must be the caller's own
        same = all(torch.equal(tensor, given[name]) for name, tensor in tensors().items())
        require(same, "the source tensors changed (in fuse, or because it returned a view of them)")
        require(torch.equal(similarities, torch.tensor(SIMILARITIES[:count])), "the similarities changed")

    def deterministic() -> None:
        first, second = fuse(tensors()), fuse(tensors())
        same = all(torch.equal(first[name], second[name]) for name in first)
        require(same, "two equal calls gave two results")

    yield Check(f"{count} prompt(s): shapes without K", shapes)
    yield Check(f"{count} prompt(s): inputs stay as they are", unchanged)
    yield Check(f"{count} prompt(s): deterministic", deterministic)


def _prediction_checks(method: PredictionFusion, count: int) -> Iterator[Check]:
    import torch

    layouts = {"outputs": (EXAMPLES, CLASSES), "outputs per token": (EXAMPLES, 4, CLASSES)}

    def targets(layout: str) -> torch.Tensor:
        generator = torch.Generator().manual_seed(0)
        return torch.randn((count, *layouts[layout]), generator=generator).softmax(-1)

    def fuse(given: torch.Tensor) -> torch.Tensor:
        view = _view() if method.needs_training_view else None
        return method.fuse(given, torch.tensor(SIMILARITIES[:count]), view)

    def shapes() -> None:
        for layout, shape in layouts.items():
            fused = fuse(targets(layout))
            require(
                fused.shape == shape,
                f"{layout} {[count, *shape]} became {list(fused.shape)}; expected it without K",
            )
            require(fused.dtype == torch.float32, f"fused targets are {fused.dtype}; expected float32")
            require(bool(fused.isfinite().all()), "fused targets are not finite")
            require(not fused.requires_grad, "fused targets still carry a gradient; detach them")

    def unchanged() -> None:
        given = targets("outputs")
        fuse(given).add_(1)
        require(
            torch.equal(given, targets("outputs")),
            "the sources' targets changed (in fuse, or because it returned a view of them)",
        )

    def deterministic() -> None:
        first, second = fuse(targets("outputs")), fuse(targets("outputs"))
        require(torch.equal(first, second), "two equal calls gave two results")

    def by_example() -> None:
        if not method.by_example:
            return
        require(
            not method.needs_training_view,
            "by_example and needs_training_view are both set; what is fitted on the training set needs all of it",
        )
        given = targets("outputs")
        halves = torch.cat([fuse(given[:, :5]), fuse(given[:, 5:])])
        require(
            torch.equal(fuse(given), halves),
            "by_example is set, but some examples alone are fused differently than among all; leave it False",
        )

    yield Check(f"{count} teacher(s): shapes without K", shapes)
    yield Check(f"{count} teacher(s): inputs stay as they are", unchanged)
    yield Check(f"{count} teacher(s): deterministic", deterministic)
    yield Check(f"{count} teacher(s): examples apart where by_example says so", by_example)


def _view() -> TrainingView:
    import torch

    from panda_fusion.fusion import TrainingView

    generator = torch.Generator().manual_seed(1)
    return TrainingView(
        features=torch.randn((EXAMPLES, 8), generator=generator),
        labels=torch.arange(EXAMPLES) % CLASSES,
        kind="classification",
    )


def _takes(method: Fusion, count: int) -> bool:
    try:
        method.check_sources(count)
    except OptionError:
        return False
    return True
