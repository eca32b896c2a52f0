"""The known names nearest to one that is not known, for messages that say "did you mean"."""

from __future__ import annotations

from collections.abc import Iterable


def nearest_names(name: str, known: Iterable[str], count: int = 3) -> list[str]:
    """Up to `count` known names that look like `name` (difflib ratio of at least 0.5), best first."""
    import difflib

    by_lower = {candidate.lower(): candidate for candidate in known}
    return [by_lower[match] for match in difflib.get_close_matches(name.lower(), by_lower, count, 0.5)]
