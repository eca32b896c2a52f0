"""What every method's options must fulfil, and the settings that the other checks are run with."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, Literal, get_args, get_origin

import msgspec

from panda_fusion.method import Method, Options
from panda_fusion.method_string import build_options, describe_options, format_method, parse_method
from panda_fusion.testing.check import Check, require


def check_options(method_type: type[Method]) -> Iterator[Check]:
    """Checks of a method's options: defaults, descriptions, and that method strings hold every setting."""

    def described() -> None:
        for option in describe_options(method_type.Options):
            require(option.default is not None, f"option {option.name!r} has no default")
            require(option.description, f"option {option.name!r} has no msgspec.Meta(description=...)")

    def round_trip() -> None:
        for options in option_variants(method_type.Options):
            text = format_method("name", options)
            _, raw = parse_method(text)
            again = build_options(method_type.Options, raw, "the method")
            require(again == options, f"{text!r} is read back as {format_method('name', again)!r}")

    def immutable() -> None:
        require(
            method_type.Options.__struct_config__.frozen,
            f"{method_type.Options.__name__} must be declared with frozen=True: instances are shared",
        )

    yield Check("options have defaults and descriptions", described)
    yield Check("options survive a method string", round_trip)
    yield Check("options are immutable", immutable)


def option_variants(options_type: type[Options]) -> list[Options]:
    """The defaults, then for every true/false option and every choice each other value on its own.

    Settings that the options refuse (a `__post_init__` that looks at several together) are left out.
    """
    variants = [options_type()]
    for field in msgspec.structs.fields(options_type):
        default = getattr(variants[0], field.name)
        for value in _choices(field.type):
            if value == default:
                continue
            try:
                variants.append(options_type(**{field.name: value}))
            except (ValueError, TypeError):
                continue
    return variants


def setting(options: Options) -> str:
    """How options differ from the defaults, for check names: `space=logits`, or nothing."""
    default = type(options)()
    parts = [part for part, usual in zip(_parts(options), _parts(default), strict=True) if part != usual]
    return ",".join(parts)


def _parts(options: Options) -> list[str]:
    return format_method("name", options).partition(":")[2].split(",")


def _choices(annotation: Any) -> tuple[Any, ...]:
    while hasattr(annotation, "__metadata__"):
        annotation = annotation.__origin__
    if annotation is bool:
        return (False, True)
    return get_args(annotation) if get_origin(annotation) is Literal else ()
