"""Spec strings: what they mean, and what is refused."""

import re

import pytest

from eedkit.lab.specs import Option, boolean, number, parse, whole, whole_numbers

KINDS = {"seed": whole, "rate": number, "exact": boolean, "widths": whole_numbers, "model": str, "layers": re.compile}
KNOWN = {name: Option(kind, "") for name, kind in KINDS.items()}


def test_each_option_is_converted():
    name, options = parse("a/b:c.d?seed=-3&rate=1e-3&exact=false&widths=16,32&model=x:y%3Fa%3D1%26b%3D2", KNOWN)
    assert name == "a/b:c.d"
    assert options == {"seed": -3, "rate": 0.001, "exact": False, "widths": (16, 32), "model": "x:y?a=1&b=2"}
    assert type(options["seed"]) is int


def test_a_regular_expression_is_kept_as_it_is():
    assert parse(r"f?layers=layer\d+|blocks.+", KNOWN)[1]["layers"].pattern == r"layer\d+|blocks.+"


def test_a_spec_without_options_is_a_name():
    assert parse("digits/test", KNOWN) == ("digits/test", {})


def test_one_nested_option_needs_no_quoting_and_a_plus_stays():
    assert parse("f?model=torchvision:net?weights=DEFAULT", KNOWN)[1] == {"model": "torchvision:net?weights=DEFAULT"}
    assert parse("f?model=a+b&rate=1e+2", KNOWN)[1] == {"model": "a+b", "rate": 100.0}


@pytest.mark.parametrize(
    ("query", "message"),
    [
        ("sed=1", "no option 'sed'; did you mean 'seed'"),
        ("seed=1&seed=1", "'seed' is given twice"),
        ("seed=", "'seed' must be a whole number, got ''"),
        ("model=", "'model' must be a text, got ''"),
        ("seed=1.5", "'seed' must be a whole number, got '1.5'"),
        ("seed=٣", "'seed' must be a whole number, got '٣'"),
        ("seed=1_0", "'seed' must be a whole number, got '1_0'"),
        ("rate=٣.٥", "'rate' must be a number, got '٣.٥'"),
        ("rate=.", "'rate' must be a number, got '.'"),
        ("widths=4,٨", "'widths' must be whole numbers"),
        ("rate=fast", "'rate' must be a number, got 'fast'"),
        ("exact=yes", "'exact' must be true or false, got 'yes'"),
        ("widths=4,,8", "'widths' must be whole numbers such as 16,32, got '4,,8'"),
        ("layers=blocks(", "'layers' must be a regular expression, got 'blocks\\('"),
        ("", "spelled 'name.key=value&key=value', got 'net.'"),
        ("seed", "spelled 'name.key=value&key=value', got 'net.seed'"),
        ("seed=1&", "spelled 'name.key=value&key=value'"),
    ],
)
def test_refusals_say_what_was_expected(query, message):
    with pytest.raises(ValueError, match=message):
        parse(f"net?{query}", KNOWN)
