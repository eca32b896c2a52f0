"""Naming some of a backbone's layers in an option: `all`, `last3`, `0-2+9`."""

from __future__ import annotations

import re

from panda_fusion.errors import OptionError

LAYERS_PATTERN = r"^(all|last[1-9][0-9]*|[0-9]+(-[0-9]+)?(\+[0-9]+(-[0-9]+)?)*)$"
"""Ways to name layers: `all`, `last3`, or numbers from 0 and ranges joined by plus signs, as in `0-2+9`."""


def chosen_layers(text: str, layers: int) -> tuple[int, ...]:
    """The layers that a text names, ascending.

    Args:
        text: what `LAYERS_PATTERN` matches.
        layers: how many the backbone has.

    Raises:
        OptionError: a layer is named that the backbone does not have, or a range runs backwards.
    """
    if text == "all":
        return tuple(range(layers))
    if text.startswith("last"):
        numbers = set(range(layers - int(text.removeprefix("last")), layers))
    else:
        numbers = set()
        for first, last in re.findall(r"([0-9]+)(?:-([0-9]+))?", text):
            numbers.update(range(int(first), int(last or first) + 1) or (-1,))
    if not numbers or min(numbers) < 0 or max(numbers) >= layers:
        raise OptionError(
            f"Option 'layers' must name layers of the backbone, which has {layers} (0 to {layers - 1}), found "
            f"{text!r}; give all, last{min(3, layers)}, or numbers and ascending ranges such as 0-1."
        )
    return tuple(sorted(numbers))
