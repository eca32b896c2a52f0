"""What every method (PEFT method, teacher, fusion, KD loss, similarity) has in common: typed options."""

from __future__ import annotations

from abc import ABC
from typing import ClassVar

import msgspec


class Options(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """Base of a method's options. Every field has a default and a `msgspec.Meta(description=...)`.

    Bounds and choices are part of the type, so the command line, recipes and metadata all check them alike::

        class PrefixOptions(Options, frozen=True, kw_only=True):
            length: Annotated[int, Meta(ge=1, le=4096, description="virtual tokens per layer")] = 20
    """


_Options = Options  # inside the class the name means the class's own options


class Method(ABC):  # noqa: B024 (each kind adds its own abstract methods)
    """Base of all methods. A subclass sets `Options` where it has any.

    Args:
        options: an instance of this class's `Options`; None takes the defaults.
    """

    Options: ClassVar[type[_Options]] = _Options

    name: str = ""
    """The registered name; the registry sets it on the instances that it makes."""

    def __init__(self, options: _Options | None = None) -> None:
        self.options = self.Options() if options is None else options

    @property
    def spec(self) -> str:
        """The full method string, every option spelled out: `prefix:length=20,projection=0,init=normal`."""
        from panda_fusion.method_string import format_method

        return format_method(self.name, self.options)
