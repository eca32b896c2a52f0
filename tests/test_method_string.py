import math
from typing import Annotated, Literal

import msgspec
import pytest
from msgspec import Meta

from panda_fusion.errors import OptionError
from panda_fusion.method import Options
from panda_fusion.method_string import (
    build_options,
    describe_options,
    format_method,
    parse_method,
)


class Sample(Options, frozen=True, kw_only=True):
    length: Annotated[int, Meta(ge=1, le=4096, description="how long")] = 20
    rate: Annotated[float, Meta(gt=0, description="how fast")] = 0.1
    space: Annotated[Literal["probs", "logits"], Meta(description="where")] = "probs"
    normalize: Annotated[bool, Meta(description="whether")] = False
    limit: Annotated[int | None, Meta(description="how many")] = None
    label: Annotated[str | None, Meta(description="what")] = "text"


def read(text: str) -> Sample:
    return build_options(Sample, parse_method(text)[1], "KD loss 'sample'")


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("kl", ("kl", {})),
        ("kl:temperature=4", ("kl", {"temperature": "4"})),
        ("target-like:a=1,b=x=y", ("target-like", {"a": "1", "b": "x=y"})),
        (" prefix : length = 5 , projection = 0 ", ("prefix", {"length": "5", "projection": "0"})),
        ("m:a=", ("m", {"a": ""})),
        ('m:a="x, y=1",b=2', ("m", {"a": "x, y=1", "b": "2"})),
        ('m: a = " x " , b = "" ', ("m", {"a": " x ", "b": ""})),
        (r'm:a="\"q\", \\",b=\n', ("m", {"a": '"q", \\', "b": r"\n"})),
        ('m:a=5" wide', ("m", {"a": '5" wide'})),
    ],
)
def test_parse(text, expected):
    assert parse_method(text) == expected


@pytest.mark.parametrize(
    "text",
    [
        "",
        "KL",
        "k l",
        ":a=1",
        "kl:",
        "kl:a",
        "kl:=1",
        "kl:a=1,",
        "kl:a=1,a=2",
        'kl:a="x',
        'kl:a="x"y',
        'kl:a="x"y",b=1',
    ],
)
def test_malformed_strings_are_refused_and_quoted(text):
    with pytest.raises(OptionError) as raised:
        parse_method(text)
    assert repr(text) in str(raised.value)


def test_values_become_typed():
    options = read("s:length=5,rate=1e-3,space=logits,normalize=true,limit=7,label=a b")
    assert options == Sample(length=5, rate=1e-3, space="logits", normalize=True, limit=7, label="a b")
    assert isinstance(options.rate, float)


def test_toml_values_are_taken_too():
    assert build_options(Sample, {"length": 5, "rate": 2, "normalize": True}, "x") == Sample(
        length=5, rate=2.0, normalize=True
    )


def test_none_is_none_where_the_type_allows_it():
    assert read("s:limit=none,label=None") == Sample(limit=None, label=None)
    with pytest.raises(OptionError, match="'length'"):
        read("s:length=none")


@pytest.mark.parametrize(
    ("text", "parts"),
    [
        ("s:lenght=3", ["KD loss 'sample'", "'lenght'", "nearest: length", "space"]),
        ("s:length=0", ["'length'", "an integer from 1 to 4096", "'0'"]),
        ("s:length=x", ["'length'", "an integer from 1 to 4096", "'x'"]),
        ("s:length=1.5", ["'length'", "an integer", "'1.5'"]),
        ("s:rate=0", ["'rate'", "a number above 0", "'0'"]),
        ("s:space=prob", ["'space'", "one of", "logits, probs", "'prob'"]),
        ("s:normalize=maybe", ["'normalize'", "true or false", "'maybe'"]),
        ("s:limit=x", ["'limit'", "an integer or none", "'x'"]),
    ],
)
def test_bad_options_say_what_was_expected_and_found(text, parts):
    with pytest.raises(OptionError) as raised:
        read(text)
    message = str(raised.value)
    assert all(part in message for part in parts), message
    assert "\n" not in message


def test_a_method_without_options_says_so():
    with pytest.raises(OptionError, match=r"takes no options, found 'a'"):
        build_options(Options, {"a": "1"}, "similarity 'constant'")


def test_a_missing_option_without_default_is_named():
    class Needs(Options, frozen=True, kw_only=True):
        size: int

    with pytest.raises(OptionError, match="'size' of x has no default"):
        build_options(Needs, {}, "x")


def test_options_that_contradict_each_other():
    class Pair(Options, frozen=True, kw_only=True):
        low: int = 0
        high: int = 1

        def __post_init__(self) -> None:
            if self.low >= self.high:
                raise ValueError("low must be below high")

    with pytest.raises(OptionError, match="low must be below high"):
        build_options(Pair, {"low": "3"}, "x")


@pytest.mark.parametrize(
    "options",
    [
        Sample(),
        Sample(length=4096, rate=1 / 3, space="logits", normalize=True, limit=-5, label=None),
        Sample(rate=1e-300, label=""),
        Sample(rate=math.inf, label="a=b:c"),
        Sample(rate=0.1 + 0.2),
        Sample(label="a, b"),
        Sample(label=' "a", \\ b\n'),
        Sample(label='"'),
        Sample(label='a "b" c'),
    ],
)
def test_round_trip(options):
    text = format_method("sample", options)
    name, raw = parse_method(text)
    assert name == "sample"
    assert list(raw) == [field.name for field in msgspec.structs.fields(Sample)]
    assert build_options(Sample, raw, "x") == options
    assert format_method("sample", build_options(Sample, raw, "x")) == text


def test_format_spells_every_option_out_in_field_order():
    assert format_method("sample", Sample(normalize=True)) == (
        "sample:length=20,rate=0.1,space=probs,normalize=true,limit=none,label=text"
    )
    assert format_method("constant", Options()) == "constant"


def test_an_int_for_a_float_is_written_as_the_float_that_is_read_back():
    assert "rate=2.0" in format_method("sample", Sample(rate=2))


@pytest.mark.parametrize("label", ["none", "NONE"])
def test_text_that_would_be_read_back_differently_is_refused(label):
    with pytest.raises(OptionError, match="'label'"):
        format_method("sample", Sample(label=label))


def test_describe():
    described = {option.name: option for option in describe_options(Sample)}
    assert list(described) == ["length", "rate", "space", "normalize", "limit", "label"]
    assert described["length"] == ("length", "an integer from 1 to 4096", "20", "how long")
    assert described["space"].type_text == "one of logits, probs"
    assert described["normalize"].default == "false"
    assert described["limit"] == ("limit", "an integer or none", "none", "how many")
    assert described["label"].type_text == "text or none"


def test_renamed_fields_go_by_their_public_name():
    class Renamed(Options, frozen=True, kw_only=True, rename={"lambda_": "lambda"}):
        lambda_: Annotated[float, Meta(description="weight")] = 0.05

    assert build_options(Renamed, {"lambda": "0.5"}, "x").lambda_ == 0.5
    assert format_method("r", Renamed()) == "r:lambda=0.05"
    assert describe_options(Renamed)[0].name == "lambda"
