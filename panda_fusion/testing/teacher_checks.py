"""What a teacher must fulfil."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING

from panda_fusion.errors import PromptFileError
from panda_fusion.method import Options
from panda_fusion.teacher import Teacher, TeacherContext
from panda_fusion.testing.check import Check, require

if TYPE_CHECKING:
    import torch

    from panda_fusion.backbone import Backbone
    from panda_fusion.peft_method import PEFTMethod
    from panda_fusion.prompt import Prompt
    from panda_fusion.trainer import TrainedPack

SEED = 7


def check_teacher(method_type: type[Teacher], options: Options | None = None, name: str = "checked") -> Iterator[Check]:
    """Checks of a teacher: it is built from made-up prompts on a tiny backbone, `fit` training for two steps.

    Args:
        method_type: the class.
        options: its options; None takes the defaults.
        name: what the instance is called.
    """
    method = method_type(options)
    method.name = name

    def shapes(count: int) -> None:
        import torch

        built = method.build(_context(_sources(count)))
        expected = {
            key: (count, *tensor.shape) for key, tensor in built.method.create(_backbone(), torch.Generator()).items()
        }
        _require_stack(built.tensors, "tensors")
        found = {key: tuple(tensor.shape) for key, tensor in built.tensors.items()}
        require(
            found == expected,
            f"{count} source(s) gave tensors {found}; expected the trainable tensors of {built.method.spec}, "
            f"one prompt per source: {expected}",
        )
        if built.head is not None:
            _require_stack(built.head, "head")
            packs = {tensor.shape[0] for tensor in built.head.values()}
            require(packs == {count}, f"head parameters have the leading axes {packs}; expected {count}")

    def repeatable() -> None:
        import torch

        first, second = (method.build(_context(_sources(2))) for _ in range(2))
        require(
            all(torch.equal(tensor, second.tensors[key]) for key, tensor in first.tensors.items()),
            "two teachers of one seed differ; seed everything with context.seed",
        )

    def unchanged() -> None:
        import torch

        sources = _sources(2)
        built = method.build(_context(sources))
        for tensor in built.tensors.values():
            tensor.detach().add_(1)  # what is returned must be the caller's own
        for source, fresh in zip(sources, _sources(2), strict=True):
            require(
                all(torch.equal(tensor, fresh.tensors[key]) for key, tensor in source.tensors.items()),
                "a source prompt's tensors changed (in build, or because it returned a view of them)",
            )

    def no_sources() -> None:
        built = method.build(_context([]))
        require(built.tensors, "needs_sources is False, but without sources there are no teacher prompts")

    def misfit() -> None:
        from panda_fusion.testing.samples import GROUPED, sample_backbone, sample_method, sample_prompt, tiny_backbone

        backbone = tiny_backbone("bert")
        other = sample_prompt(backbone, sample_method(), 9, sample_backbone(GROUPED))
        try:
            method.build(_context([_sources(1)[0], other]))
        except PromptFileError:
            return
        require(False, "sources of different sizes were taken; expected PromptFileError")

    yield Check("one source: one teacher prompt of the stated shapes", lambda: shapes(1))
    yield Check("two sources: two teacher prompts of the stated shapes", lambda: shapes(2))
    yield Check("the seed decides everything", repeatable)
    yield Check("sources stay as they are", unchanged)
    if method.needs_sources:
        yield Check("sources that do not fit each other raise PromptFileError", misfit)
    else:
        yield Check("works without sources", no_sources)


def _backbone() -> Backbone:
    from panda_fusion.testing.samples import tiny_backbone

    return tiny_backbone("bert")


def _sources(count: int) -> list[Prompt]:
    from panda_fusion.testing.samples import sample_method, sample_prompt, tiny_backbone

    return [sample_prompt(tiny_backbone("bert"), sample_method(), seed) for seed in range(count)]


def _context(sources: Sequence[Prompt]) -> TeacherContext:
    """A context whose `fit` is the engine's own training, cut to two small steps."""
    import torch

    from panda_fusion.task import Task
    from panda_fusion.testing.samples import encoded_texts, sample_method, tiny_backbone
    from panda_fusion.trainer import Student, TrainSettings, train_pack

    backbone = tiny_backbone("bert")
    data = encoded_texts(backbone)
    task = Task(name="sample", kind="classification", inputs=("text",), labels=("no", "yes"))

    def fit(
        method: PEFTMethod, tensors: Mapping[str, torch.Tensor], *, epochs: int, max_steps: int | None
    ) -> TrainedPack:
        count = len(next(iter(tensors.values())))
        students = [
            Student(
                tensors={name: tensor[number].clone() for name, tensor in tensors.items()},
                head=backbone.head(task.outputs).create(torch.Generator().manual_seed(SEED + number)),
                seed=SEED,
                learning_rate=1e-2,
            )
            for number in range(count)
        ]
        settings = TrainSettings(epochs=epochs, max_steps=min(2, max_steps or 2), batch_size=2, dropout=0.0)
        return train_pack(backbone, method, students, task, data, settings)

    return TeacherContext(
        backbone=backbone,
        train=data,
        sources=sources,
        method=sample_method(),
        seed=SEED,
        steps_per_epoch=-(-len(data) // 2),
        fit=fit,
    )


def _require_stack(tensors: Mapping[str, torch.Tensor], what: str) -> None:
    import torch

    require(tensors, f"{what} is empty")
    for name, tensor in tensors.items():
        require(tensor.dtype == torch.float32, f"{what} {name!r} is {tensor.dtype}; expected float32")
        require(bool(tensor.isfinite().all()), f"{what} {name!r} is not finite")
