"""Every hook that a plugin can implement. Implement them with `@panda_fusion.hookimpl`.

Registration hooks get a `register` callback; nothing heavy should be imported until a method is used, so a
factory may be a `"module:Name"` string. docs/plugins.md documents each hook; a test keeps the two in step.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Protocol

from panda_fusion.markers import hookspec

if TYPE_CHECKING:
    import click

    from panda_fusion.method import Method
    from panda_fusion.task import Task


class RegisterMethod(Protocol):
    """The callback of the method hooks.

    Args:
        name: what users type; lower-case letters, digits, `-`, `_`.
        factory: the class, or `"module:Name"` to import it on first use.
        help: one line for `panda-fusion plugins list`.

    A name that another plugin has already, a bad name or a bad factory raises nothing here: the registration is
    left out and reported among the broken plugins (a collision names both), what follows it is still made.
    """

    def __call__(self, name: str, factory: type[Method] | str, *, help: str) -> None: ...


class RegisterTask(Protocol):
    """The callback of `register_tasks`; the task's own name is the key. A collision is reported likewise."""

    def __call__(self, task: Task) -> None: ...


@hookspec
def register_peft_methods(register: RegisterMethod) -> None:
    """Register PEFT methods (subclasses of `panda_fusion.peft_method.PEFTMethod`).

    Args:
        register: `register(name, factory, help=...)`.

    Version added: 0.1
    """


@hookspec
def register_teachers(register: RegisterMethod) -> None:
    """Register teachers (subclasses of `panda_fusion.teacher.Teacher`).

    Args:
        register: `register(name, factory, help=...)`.

    Version added: 0.1
    """


@hookspec
def register_fusions(register: RegisterMethod) -> None:
    """Register fusions (subclasses of `PromptFusion` or `PredictionFusion` in `panda_fusion.fusion`).

    Args:
        register: `register(name, factory, help=...)`.

    Version added: 0.1
    """


@hookspec
def register_kd_losses(register: RegisterMethod) -> None:
    """Register KD losses (subclasses of `panda_fusion.kd_loss.KDLoss`).

    Args:
        register: `register(name, factory, help=...)`.

    Version added: 0.1
    """


@hookspec
def register_similarities(register: RegisterMethod) -> None:
    """Register similarities (subclasses of `panda_fusion.similarity.Similarity`).

    Args:
        register: `register(name, factory, help=...)`.

    Version added: 0.1
    """


@hookspec
def register_tasks(register: RegisterTask) -> None:
    """Register tasks by name.

    Args:
        register: `register(task)` with a `panda_fusion.task.Task`.

    Version added: 0.1
    """


@hookspec
def register_executors(register: RegisterMethod) -> None:
    """Register executors (subclasses of `panda_fusion.executor.Executor`).

    Args:
        register: `register(name, factory, help=...)`.

    Version added: 0.1
    """


@hookspec
def register_commands(cli: click.Group) -> None:
    """Add commands to the command line.

    Args:
        cli: the `panda-fusion` click group; import heavy modules inside the commands, not beside them.

    Version added: 0.1
    """


@hookspec
def run_started(run: Mapping[str, object]) -> None:
    """Called once before the first training step of a pack.

    Args:
        run: `task`, `model`, `method`, `prompts` (pack size), `seeds`, `epochs`, `steps`, `batch_size`,
            `device`, `precision`.

    Version added: 0.1
    """


@hookspec
def step_ended(step: int, steps: int, losses: object) -> None:
    """Called after every training step.

    Args:
        step: steps done, from 1.
        steps: steps planned.
        losses: tensor [G] of the step's training losses, one per prompt of the pack, on the training device
            (reading it on a GPU waits for the device; do it rarely).

    Version added: 0.1
    """


@hookspec
def evaluated(step: int, epoch: float, scores: Mapping[str, list[float]]) -> bool | None:
    """Called after every evaluation.

    Args:
        step: steps done.
        epoch: epochs done.
        scores: metric name -> one value per prompt of the pack.

    Returns:
        True to stop the training here (best and last scores are kept); anything else goes on.

    Version added: 0.1
    """


@hookspec
def run_ended(run: Mapping[str, object], error: BaseException | None) -> None:
    """Called once after training, also when it ended early or failed.

    Args:
        run: as in `run_started`, with `steps_done` and `wall_seconds` added.
        error: what ended the run; None if it went well.

    Version added: 0.1
    """
