"""What a user types after --model, looked at before anything heavy is imported."""

from __future__ import annotations

import os
import re
from pathlib import Path

from panda_fusion.errors import BackboneError
from panda_fusion.printable import printable

TINY = "tiny"
"""The name of the backbone that ships inside the package."""
CONFIG_FILE = "config.json"

_HUB_NAME = re.compile(r"(?:[\w.-]+/)?[\w.-]+")


def check_model_name(name: str) -> None:
    """Refuse what can be neither the tiny backbone, nor a model folder, nor a name on the Hub.

    A name of the Hub's form passes: whether the Hub knows it shows when it is loaded.

    Raises:
        BackboneError: a folder without a config.json, a path that does not exist, or no possible name.
    """
    shown = printable(name, 200)
    if name == TINY:
        return
    if Path(name).is_dir():
        if not (Path(name) / CONFIG_FILE).is_file():
            raise BackboneError(
                f"Model {shown!r} cannot be loaded: the folder holds no {CONFIG_FILE}; name a folder that"
                " save_pretrained wrote, with its tokenizer."
            )
        return
    if Path(name).is_file():
        raise BackboneError(
            f"Model {shown!r} cannot be loaded: it is a file; name the folder that holds its {CONFIG_FILE}, weights"
            " and tokenizer."
        )
    looks_like_path = name.startswith((".", "~", os.sep)) or name.endswith(("/", os.sep)) or name.count("/") > 1
    if looks_like_path:
        raise BackboneError(f"Model {shown!r} cannot be loaded: there is no such folder; check the path.")
    if not _HUB_NAME.fullmatch(name):
        raise BackboneError(
            f"Model {shown!r} is neither 'tiny', nor a folder, nor a possible name on the Hub; check --model."
        )
