"""Names of files and anchors, made of names that strangers chose."""

from __future__ import annotations

from collections.abc import Iterable


def file_name(*parts: str) -> str:
    """Parts joined by dashes, in characters that are safe in a path, a link and an anchor."""
    letters = "-".join(part for part in parts if part)
    return "".join(letter if letter.isascii() and (letter.isalnum() or letter in "-_=") else "-" for letter in letters)[
        :80
    ]


def distinct(names: Iterable[str]) -> list[str]:
    """The names in order; one that came before, in whatever case, gets a number."""
    taken: set[str] = set()
    found = []
    for name in names:
        number, free = 1, name
        while free.lower() in taken:
            number += 1
            free = f"{name}-{number}"
        taken.add(free.lower())
        found.append(free)
    return found
