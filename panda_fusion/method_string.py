"""Method strings: `name` or `name:option=value,option=value`, and the typed options behind them."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple, TypeVar

import msgspec
from msgspec import inspect

from panda_fusion.errors import OptionError
from panda_fusion.method import Options
from panda_fusion.nearest import nearest_names

NAME_PATTERN = re.compile(r"[a-z0-9][a-z0-9_-]*")
"""What a method may be called."""

O = TypeVar("O", bound=Options)  # noqa: E741


class OptionHelp(NamedTuple):
    """One option for people to read.

    Attributes:
        name: what users type.
        type_text: what it takes, in words (`integer from 1 to 4096`).
        default: the default as one would type it; None where the option must be given.
        description: from `msgspec.Meta(description=...)`; empty where the author gave none.
    """

    name: str
    type_text: str
    default: str | None
    description: str


def parse_method(text: str) -> tuple[str, dict[str, str]]:
    """Split a method string into its name and its raw options, in the order given.

    Args:
        text: `name` or `name:option=value,option=value`; blanks around names and values do not count. A value with
            commas, or blanks at its ends, stands in double quotes; a quote or backslash inside of them has a
            backslash in front: `prompt:init=text,text="a \\"b\\", c"`.

    Raises:
        OptionError: the string does not have that form, or names an option twice.
    """
    name, colon, rest = text.partition(":")
    name = name.strip()
    if not NAME_PATTERN.fullmatch(name):
        raise OptionError(
            f"Method {text!r} is not of the form name or name:option=value,option=value: "
            f"{name!r} is not a method name (lower-case letters, digits, - and _)."
        )
    options: dict[str, str] = {}
    for item in _items(text, rest) if colon else ():
        option, equals, value = item.partition("=")
        option = option.strip()
        if not equals or not option:
            raise OptionError(
                f"Method {text!r} is not of the form name:option=value,option=value: "
                f"expected option=value, found {item.strip()!r}."
            )
        if option in options:
            raise OptionError(f"Method {text!r} gives option {option!r} twice; give it once.")
        options[option] = _unquoted(value.strip())
    return name, options


_QUOTED = re.compile(r'"(?:[^"\\]|\\.)*"', re.DOTALL)
_ITEM = re.compile(r'\s*[^=,"]*=\s*' + _QUOTED.pattern + r"\s*(?=,|\Z)|[^,]*", re.DOTALL)


def _items(text: str, rest: str) -> Iterator[str]:
    """The parts between commas; a comma inside a quoted value separates nothing."""
    place = 0
    while True:
        match = _ITEM.match(rest, place)
        assert match is not None  # the second alternative takes anything, also nothing
        if re.match(r'[^=]*=\s*"', match[0]) and not _QUOTED.fullmatch(match[0].partition("=")[2].strip()):
            raise OptionError(
                f"Method {text!r} is not of the form name:option=value,option=value: a value that begins with a double "
                "quote must end with one, and quotes inside of it need a backslash in front."
            )
        yield match[0]
        place = match.end() + 1
        if place > len(rest):
            return


def _unquoted(value: str) -> str:
    return re.sub(r"\\(.)", r"\1", value[1:-1], flags=re.DOTALL) if value.startswith('"') else value


def _quoted(value: str) -> str:
    return '"' + re.sub(r'(["\\])', r"\\\1", value) + '"'


def build_options(options_type: type[O], raw: Mapping[str, object], where: str) -> O:
    """Make typed, checked options from raw ones.

    Args:
        options_type: the method's `Options`.
        raw: option name -> value, as strings (from a method string) or as TOML values (from a recipe).
        where: what the options belong to, for messages (`KD loss 'kl'`).

    Raises:
        OptionError: an option is unknown, missing, or has a bad value.
    """
    fields = {field.encode_name: field for field in msgspec.structs.fields(options_type)}
    values: dict[str, Any] = {}
    for name, value in raw.items():
        if name not in fields:
            raise OptionError(_unknown_option(name, list(fields), where))
        field = fields[name]
        if isinstance(value, str) and value.lower() == "none" and _allows_none(_type_of(field.type)):
            values[field.name] = None
            continue
        try:
            values[field.name] = msgspec.convert(value, field.type, strict=False)
        except msgspec.ValidationError:
            raise OptionError(
                f"Option {name!r} of {where} must be {_describe(_type_of(field.type))}, found {value!r}."
            ) from None
    for name, field in fields.items():
        if field.required and field.name not in values:
            raise OptionError(f"Option {name!r} of {where} has no default; give {name}=....")
    try:
        return options_type(**values)
    except (ValueError, TypeError) as error:  # a __post_init__ that looks at several options together
        raise OptionError(f"The options of {where} do not go together: {error}") from error


def format_method(name: str, options: Options) -> str:
    """The method string with every option spelled out in field order; `parse_method` and `build_options`
    give the same options back, floats to the last bit. Texts are quoted where they need it.

    Raises:
        OptionError: a text value cannot be written, because it would be read as none.
    """
    items = []
    for field in msgspec.structs.fields(options):
        value = getattr(options, field.name)
        described = _type_of(field.type)
        text = _format_value(value, described)
        if isinstance(value, str):
            if value.lower() == "none" and _allows_none(described):
                raise OptionError(
                    f"Option {field.encode_name!r} of method {name!r} cannot be written in a method string: {value!r} "
                    "would be read as no value; give another text."
                )
            if "," in value or value.startswith('"') or value != value.strip():
                text = _quoted(value)
        items.append(f"{field.encode_name}={text}")
    return f"{name}:{','.join(items)}" if items else name


def describe_options(options_type: type[Options]) -> list[OptionHelp]:
    """Name, type, default and description of every option, in field order."""
    described = []
    for field in msgspec.structs.fields(options_type):
        info = _type_of(field.type)
        default: str | None = None
        if field.default is not msgspec.NODEFAULT:
            default = _format_value(field.default, info)
        elif field.default_factory is not msgspec.NODEFAULT:
            default = _format_value(field.default_factory(), info)
        described.append(OptionHelp(field.encode_name, _describe(info), default, _description(field.type)))
    return described


def _unknown_option(name: str, known: list[str], where: str) -> str:
    if not known:
        return f"{_capital(where)} takes no options, found {name!r}; leave it out."
    near = nearest_names(name, known)
    hint = f" (nearest: {', '.join(near)})" if near else ""
    return f"{_capital(where)} has no option {name!r}{hint}; it takes {', '.join(known)}."


def _capital(text: str) -> str:
    return text[:1].upper() + text[1:]


def _type_of(annotation: Any) -> inspect.Type:
    info = inspect.type_info(annotation)
    return info.type if isinstance(info, inspect.Metadata) else info


def _description(annotation: Any) -> str:
    info = inspect.type_info(annotation)
    if isinstance(info, inspect.Metadata):
        return str((info.extra_json_schema or {}).get("description", ""))
    return ""


def _allows_none(info: inspect.Type) -> bool:
    if isinstance(info, inspect.UnionType):
        return any(_allows_none(member) for member in info.types)
    if isinstance(info, inspect.Metadata):
        return _allows_none(info.type)
    return isinstance(info, inspect.NoneType)


def _format_value(value: object, info: inspect.Type) -> str:
    if value is None:
        return "none"
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, float):
        return repr(value)
    if isinstance(value, int) and _only_floats(info):
        return repr(float(value))  # the options were made in Python with an int for a float
    return str(value)


def _only_floats(info: inspect.Type) -> bool:
    if isinstance(info, inspect.UnionType):
        members = [member for member in info.types if not isinstance(member, inspect.NoneType)]
        return all(_only_floats(member) for member in members)
    if isinstance(info, inspect.Metadata):
        return _only_floats(info.type)
    return isinstance(info, inspect.FloatType)


def _describe(info: inspect.Type) -> str:
    """What a type takes, in words."""
    match info:
        case inspect.Metadata():
            return _describe(info.type)
        case inspect.UnionType():
            return " or ".join(_describe(member) for member in info.types)
        case inspect.NoneType():
            return "none"
        case inspect.BoolType():
            return "true or false"
        case inspect.IntType():
            return "an integer" + _bounds(info)
        case inspect.FloatType():
            return "a number" + _bounds(info)
        case inspect.LiteralType():
            return "one of " + ", ".join(str(value) for value in info.values)
        case inspect.StrType():
            return "text" + (f" matching {info.pattern}" if info.pattern else "")
        case _:
            return type(info).__name__.removesuffix("Type").lower()


def _bounds(info: inspect.IntType | inspect.FloatType) -> str:
    if info.ge is not None and info.le is not None:
        words = [f"from {info.ge} to {info.le}"]
    else:
        pairs = ((info.ge, "of at least"), (info.gt, "above"), (info.le, "of at most"), (info.lt, "below"))
        words = [f"{word} {bound}" for bound, word in pairs if bound is not None]
    if info.multiple_of is not None:
        words.append(f"divisible by {info.multiple_of}")
    return " " + " and ".join(words) if words else ""
