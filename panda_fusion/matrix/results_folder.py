"""A matrix's folder of results: which recipe it belongs to, and who works on what."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import msgspec
from filelock import FileLock, Timeout

from panda_fusion import atomic_write
from panda_fusion.errors import OutputError, RecipeError
from panda_fusion.matrix.cells import Cell, digest
from panda_fusion.matrix.recipe import Recipe
from panda_fusion.printable import printable

PROMPTS = "prompts"
CLAIMS = "claims"
STATE = "matrix.json"


class State(msgspec.Struct, frozen=True, kw_only=True):
    """What the folder remembers.

    Attributes:
        recipe: digest of the recipe.
        pack_size: most prompts in a pack, the same for all who work here.
    """

    recipe: str
    pack_size: int


def recipe_digest(recipe: Recipe) -> str:
    """A digest of everything in a recipe that decides results; where model and data lie is not part of it."""
    values = msgspec.to_builtins(recipe)
    values["model"] = Path(recipe.model or "").name
    for name in ("data", "description", "output"):
        del values[name]
    return digest(values)


def open_folder(folder: Path, recipe: Recipe, pack_size: int) -> State:
    """Make a results folder, or take up one of the same recipe.

    Args:
        folder: the folder.
        recipe: the recipe.
        pack_size: most prompts in a pack, if the folder is new.

    Raises:
        RecipeError: it holds results of another recipe, or something else.
        OutputError: it cannot be written.
    """
    path = folder / STATE
    own = recipe_digest(recipe)
    atomic_write.check_writable(path)
    for name in (CLAIMS, PROMPTS):
        try:
            (folder / name).mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise _cannot_write(folder / name, error) from error
    with FileLock(folder / f"{STATE}.lock"):
        if not path.exists():
            state = State(recipe=own, pack_size=pack_size)
            atomic_write.write_bytes(path, msgspec.json.encode(state) + b"\n")
            return state
        try:
            state = msgspec.json.decode(path.read_bytes(), type=State)
        except msgspec.MsgspecError as error:
            raise RecipeError(
                f"{printable(str(path))} is damaged ({printable(str(error), 100)}); use another --out folder, or "
                "remove this file if the folder's records belong to this recipe."
            ) from error
    if state.recipe != own:
        raise RecipeError(
            f"Folder {printable(str(folder))} holds the results of another recipe (digest {state.recipe}, this one has "
            f"{own}); use another --out folder."
        )
    return state


def prompt_path(folder: Path, cell: str) -> Path:
    """Where the prompt of a cell lies."""
    return folder / PROMPTS / f"{cell}.safetensors"


@contextmanager
def claim(folder: Path, pack: str) -> Iterator[bool]:
    """Claim a pack for the length of the block.

    The claim is a lock of the operating system, which ends with the process however it ends.

    Yields:
        Whether the claim succeeded; False while another process works on the pack.

    Raises:
        OutputError: the file of the lock cannot be made (a full disk, say).
    """
    lock = FileLock(folder / CLAIMS / f"{pack}.lock")
    try:
        lock.acquire(timeout=0)
    except Timeout:
        yield False
        return
    except OSError as error:
        raise _cannot_write(folder / CLAIMS, error) from error
    try:
        yield True
    finally:
        lock.release()


def _cannot_write(path: Path, error: OSError) -> OutputError:
    return OutputError(
        f"Cannot write {printable(str(path))}: {(error.strerror or str(error)).lower()}; correct that and run the same "
        "command again."
    )


def kept(recipe: Recipe, cells: list[Cell]) -> set[str]:
    """Cells whose prompt files are kept: those that others need, and all where the recipe says so."""
    needed = {need for cell in cells for need in cell.needs}
    return needed | ({cell.id for cell in cells if cell.trains} if recipe.output.prompts else set())
