"""What a KD loss must fulfil."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

from panda_fusion.errors import OptionError
from panda_fusion.kd_loss import ALL_KINDS, KDLoss
from panda_fusion.method import Options
from panda_fusion.testing.check import Check, require

if TYPE_CHECKING:
    import torch

SHAPES = {
    "classification": (5, 3),
    "regression": (5, 1),
    "multiple-choice": (5, 2),
    "token-classification": (5, 4, 3),
    "extractive-qa": (5, 2, 7),
}
"""Task kind -> [B, C] or [B, T, C] of the logits that the checks use."""
PACK = 3


def check_kd_loss(method_type: type[KDLoss], options: Options | None = None, name: str = "checked") -> Iterator[Check]:
    """Checks of a KD loss, for every task kind that it declares.

    Args:
        method_type: the class.
        options: its options; None takes the defaults.
        name: what the instance is called.
    """
    method = method_type(options)
    method.name = name
    kinds = [kind for kind in SHAPES if _takes(method, kind)]

    def declared() -> None:
        unknown = method.kinds - ALL_KINDS
        require(not unknown, f"kinds has {sorted(unknown)}; known are {sorted(ALL_KINDS)}")
        require(any(_takes(method, kind) for kind in ALL_KINDS), "the loss is defined for no task kind")
        for kind in ALL_KINDS - method.kinds:
            require(not _takes(method, kind), f"{kind!r} is not among kinds, but check_kind takes it")

    yield Check("undefined task kinds raise OptionError up front", declared)
    for kind in kinds:
        yield from _checks_of_kind(method, kind)


def _checks_of_kind(method: KDLoss, kind: str) -> Iterator[Check]:
    import torch

    def logits(seed: int, pack: int = PACK) -> torch.Tensor:
        return torch.randn((pack, *SHAPES[kind]), generator=torch.Generator().manual_seed(seed)) * 2

    def targets(seed: int) -> torch.Tensor:
        return method.targets(logits(seed), kind)

    def target_space() -> None:
        teacher = logits(1)
        before = teacher.clone()
        made = method.targets(teacher, kind)
        require(torch.equal(teacher, before), "targets changed the logits that it was given")
        require(
            made.shape == teacher.shape,
            f"targets of logits {_shape(teacher)} have the shape {_shape(made)}; expected the same",
        )
        require(made.dtype == torch.float32, f"targets are {made.dtype}; expected float32")
        require(bool(made.isfinite().all()), "targets of ordinary logits are not finite")
        require(torch.equal(made[1], method.targets(teacher[1], kind)), "targets depend on the leading axes")

    def one_per_prompt() -> None:
        loss = method.loss(logits(2), targets(1), kind)
        require(loss.shape == (PACK,), f"the loss has the shape {_shape(loss)}; expected [{PACK}], one per prompt")
        require(loss.dtype == torch.float32, f"the loss is {loss.dtype}; expected float32")
        require(bool(loss.isfinite().all()), "the loss of ordinary logits is not finite")

    def independent() -> None:
        student, goal = logits(2), targets(1)
        together = method.loss(student, goal, kind)
        alone = torch.cat([method.loss(student[g : g + 1], goal[g : g + 1], kind) for g in range(PACK)])
        require(
            torch.allclose(together, alone, rtol=1e-5, atol=1e-6),
            f"losses in a pack are {together.tolist()}, alone {alone.tolist()}; they must be equal",
        )

    def minimal() -> None:
        teacher = logits(1)
        goal = method.targets(teacher, kind)
        least = method.loss(teacher.clone(), goal, kind)
        for seed in range(8):
            other = method.loss(teacher + 0.3 * logits(10 + seed), goal, kind)
            require(
                bool((least <= other + 1e-5).all()),
                f"a student equal to the teacher has the loss {least.tolist()}, another one {other.tolist()}",
            )

    def gradient() -> None:
        student = logits(2).requires_grad_()
        method.loss(student, targets(1), kind).sum().backward()
        found = student.grad
        require(found is not None, "no gradient reaches the student's logits")
        assert found is not None
        require(bool(found.isfinite().all()), "the gradient at the student's logits is not finite")
        require(bool((found.flatten(1).abs().sum(1) > 0).all()), "the gradient at the student's logits is zero")

    def certain() -> None:
        student = (logits(2) * 40).requires_grad_()
        loss = method.loss(student, method.targets(logits(1) * 40, kind), kind)
        loss.sum().backward()
        require(bool(loss.isfinite().all()), f"for very certain outputs the loss is {loss.tolist()}")
        require(
            student.grad is not None and bool(student.grad.isfinite().all()),
            "for very certain outputs the gradient is not finite",
        )

    def masked() -> None:
        shape = (PACK, *SHAPES[kind][:-1])
        mask = torch.ones(shape, dtype=torch.bool)
        mask[:, 1] = False
        mask[:, 3:] = False
        student, goal = logits(2), targets(1)
        whole = method.loss(student, goal, kind)
        everything = method.loss(student, goal, kind, torch.ones(shape, dtype=torch.bool))
        require(
            torch.allclose(whole, everything, rtol=1e-5),
            f"a mask that is True everywhere changes the loss from {whole.tolist()} to {everything.tolist()}",
        )
        found = method.loss(student, goal, kind, mask)
        expected = method.loss(student[:, [0, 2]], goal[:, [0, 2]], kind)
        require(
            torch.allclose(found, expected, rtol=1e-5, atol=1e-6),
            f"with rows masked out the loss is {found.tolist()}; without them {expected.tolist()}",
        )
        student.requires_grad_()
        method.loss(student, goal, kind, mask).sum().backward()
        assert student.grad is not None
        require(not student.grad[:, 1].any(), "a masked row has a gradient")

    def empty_mask() -> None:
        mask = torch.ones((PACK, *SHAPES[kind][:-1]), dtype=torch.bool)
        mask[0] = False
        loss = method.loss(logits(2), targets(1), kind, mask)
        require(bool(loss.isfinite().all()), f"where nothing of a prompt counts the losses are {loss.tolist()}")

    def fused() -> None:
        goal = 0.35 * targets(1) + 0.2 * targets(3)  # as late fusion makes them: they need not sum to one
        loss = method.loss(logits(2), goal, kind)
        require(bool(loss.isfinite().all()), f"for a weighted average of targets the loss is {loss.tolist()}")

    for words, run in (
        ("targets keep shape and dtype", target_space),
        ("one loss per prompt", one_per_prompt),
        ("prompts of a pack are independent", independent),
        ("least where student and teacher agree", minimal),
        ("gradient is finite and not zero", gradient),
        ("finite for very certain outputs", certain),
        ("mask leaves rows out", masked),
        ("finite where a mask leaves nothing", empty_mask),
        ("takes fused targets", fused),
    ):
        yield Check(f"{kind}: {words}", run)


def _takes(method: KDLoss, kind: str) -> bool:
    try:
        method.check_kind(kind)
    except OptionError:
        return False
    return True


def _shape(tensor: torch.Tensor) -> list[int]:
    return list(tensor.shape)
