"""What each task kind takes from a row: texts, words, choices, answers, checked one by one."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING

from panda_fusion.printable import printable

if TYPE_CHECKING:
    from panda_fusion.prompt import TaskInfo
    from panda_fusion.task import Row, Task

CHOICES = "choices"
"""Under this name a read row holds its list of choices."""
JOINERS = {"cause": "because", "effect": "so"}
"""COPA's question -> the word between premise and choice, as P-tuning v2 has it."""

Inputs = Callable[[Mapping[str, object]], "Row"]
"""From a row to what the kind reads of it besides the label; raises ValueError with the rest of a sentence."""


def input_reader(task: Task | TaskInfo) -> Inputs:
    """The reader of a task's inputs.

    Args:
        task: the task, or what a prompt file says of it.

    Returns:
        A function to a row that holds under the names of `inputs` texts (token-classification: a list of words, and
        the predicate's word under the name of its column), and `choices`.
    """
    kind = task.kind
    if kind == "token-classification":
        return lambda row: _words(task, row)
    if kind == "multiple-choice":
        return lambda row: _choices(task, row)
    return lambda row: _texts(task, row)


def answers(value: object, context: str, no_answer: bool) -> list[tuple[str, int]]:
    """The answers of an extractive-qa row: texts and where they start in the context.

    Raises:
        ValueError: they have another form, or an answer is not where it is said to be.
    """
    if not isinstance(value, dict):
        raise ValueError(f"answers must be an object with `text` and `answer_start`, found {json_type(value)}")
    texts, starts = value.get("text"), value.get("answer_start")
    if not isinstance(texts, list) or not isinstance(starts, list) or len(texts) != len(starts):
        raise ValueError("answers must hold two lists of one length, `text` and `answer_start`; correct the row")
    if not texts and not no_answer:
        raise ValueError("the question has no answer, which this task does not allow; use squad_v2 or drop the row")
    found = []
    for text, start in zip(texts, starts, strict=True):
        if not isinstance(text, str) or type(start) is not int:
            raise ValueError("every answer must be a string with an integer `answer_start`; correct the row")
        if not text or context[start : start + len(text)] != text or start < 0:
            there = printable(context[max(start, 0) : max(start, 0) + len(text)], 40)
            raise ValueError(
                f"answer {printable(text, 40)!r} is not in the context at character {start} (there is {there!r}); "
                "correct `answer_start`"
            )
        found.append((text, start))
    return found


def json_type(value: object) -> str:
    """The type of a value in JSON's words, for messages."""
    if value is None:
        return "null"
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, int | float):
        return f"the number {printable(str(value), 40)}"
    for types, word in ((str, "a string"), (list | tuple, "a list"), (dict, "an object")):
        if isinstance(value, types):
            return word
    return f"a {type(value).__name__}"


def cell(row: Mapping[str, object], column: str) -> object:
    """The value in a column.

    Raises:
        ValueError: there is no such column.
    """
    try:
        return row[column]
    except KeyError:
        found = ", ".join(printable(str(name), 40) for name in list(row)[:12]) or "none"
        raise ValueError(
            f"column {column!r} is missing (columns found: {found}); rename a column of the data or of the task"
        ) from None


def text(value: object, column: str) -> str:
    """A column's value as a text.

    Raises:
        ValueError: it is none, or holds half a character.
    """
    if not isinstance(value, str):
        advice = 'write "" for an empty text' if value is None else "write it as a JSON string"
        raise ValueError(f"column {column!r} must be a string, found {json_type(value)}; {advice}")
    if not value.isascii():
        try:
            value.encode("utf-8")
        except UnicodeEncodeError as error:
            code = ord(value[error.start])
            raise ValueError(
                f"column {column!r} holds half of a surrogate pair (\\u{code:04x}); write the whole character"
            ) from None
    return value


def _texts(task: Task | TaskInfo, row: Mapping[str, object]) -> Row:
    read: Row = {}
    for column in task.inputs:
        value = text(cell(row, column), column)
        if column in task.columns.offsets:
            _check_offsets(row, column, value, task.columns.offsets[column])
        lead = task.columns.lead.get(column)
        read[column] = value if lead is None else f"{text(cell(row, lead), lead)}: {value}"
    return read


def _check_offsets(row: Mapping[str, object], column: str, value: str, names: tuple[str, str]) -> None:
    start, end = (cell(row, name) for name in names)
    if type(start) is not int or type(end) is not int or not 0 <= start < end <= len(value):
        raise ValueError(
            f"the marked word of column {column!r} is said to be at characters {printable(str(start), 20)} to "
            f"{printable(str(end), 20)}, and the text has {len(value)}; correct {names[0]!r} and {names[1]!r}"
        )


def _words(task: Task | TaskInfo, row: Mapping[str, object]) -> Row:
    column = task.inputs[0]
    value = cell(row, column)
    if not isinstance(value, list) or not value:
        raise ValueError(f"column {column!r} must be a list of one word or more, found {json_type(value)}")
    words = [text(word, column) for word in value]
    read: Row = {column: words}
    name = task.columns.predicate
    if name:
        index = cell(row, name)
        if type(index) is not int or not 0 <= index < len(words):
            raise ValueError(
                f"column {name!r} must be the index of a word, 0 to {len(words) - 1}, found "
                f"{printable(str(index), 20)}; correct it"
            )
        read[name] = words[index]
    return read


def _choices(task: Task | TaskInfo, row: Mapping[str, object]) -> Row:
    read = _texts(task, row)
    names = task.columns.choices
    if len(names) == 1:
        value = cell(row, names[0])
        if not isinstance(value, list):
            raise ValueError(f"column {names[0]!r} must be a list of choices, found {json_type(value)}")
        choices = [text(choice, names[0]) for choice in value]
    else:
        choices = [text(cell(row, name), name) for name in names]
    if len(choices) < 2:
        raise ValueError(f"a row needs two choices or more, found {len(choices)}; correct the row or leave it out")
    if task.columns.question:
        asked = cell(row, task.columns.question)
        if asked not in JOINERS:
            raise ValueError(
                f"column {task.columns.question!r} must be {' or '.join(map(repr, JOINERS))}, found "
                f"{printable(repr(asked), 40)}; correct the row"
            )
        read[task.inputs[0]] = f"{read[task.inputs[0]]} {JOINERS[str(asked)]}"
    read[CHOICES] = choices
    return read
