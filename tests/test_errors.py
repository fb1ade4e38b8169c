"""Messages: short whatever they repeat, and without characters that a terminal obeys."""

import time
import tracemalloc

import pytest

from eedkit.errors import LONGEST, cut, printable, short, unknown


def alias_bomb(depth=9):
    """A list of ten times the same list of ten times the same list, …, as nested YAML aliases make it."""
    value = ["lol"] * 10
    for _ in range(depth):
        value = [value] * 10
    return value


@pytest.mark.parametrize("message", [short, lambda bomb: unknown("seed", bomb, ["seed"])])
def test_an_alias_bomb_is_not_written_out(message):
    bomb = alias_bomb()
    tracemalloc.start()
    before = time.process_time()
    text = message(bomb)
    assert time.process_time() - before < 1
    assert tracemalloc.get_traced_memory()[1] < 1e6
    tracemalloc.stop()
    assert len(text) < LONGEST + 100
    assert "[[[[...], [...]" in text


@pytest.mark.parametrize("value", ["x" * 10**6, ["y" * 10**6] * 6, {"k" * 10**6: "v"}, {"z" * 10**6}])
def test_a_value_is_repeated_in_so_many_characters(value):
    assert 50 < len(short(value)) <= LONGEST
    assert len(unknown("key", value, ["a", "b"])) < LONGEST + 50


def test_usual_values_are_repeated_whole():
    path = "file:" + "folder/" * 20 + "model.pt"
    assert short(path) == repr(path)
    assert short({"a": [1, (2.5, None)]}) == "{'a': [1, (2.5, None)]}"


def test_long_known_names_do_not_make_a_long_message():
    message = unknown("layer", "conv", ["conv" * 10**5] * 50)
    assert len(message) < 21 * LONGEST
    assert message.endswith("…)")


def test_a_text_is_cut_at_its_end():
    assert cut("abcdef", 6) == "abcdef"
    assert cut("abcdefg", 6) == "abcde…"


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("\x1b]0;owned\x07", r"\x1b]0;owned\x07"),
        ("\x9b2J", r"\x9b2J"),
        ("a\rb\tc\x00\x7f", r"a\rb\tc\x00\x7f"),
        ("exe.\u202etxt\u2066", r"exe.\u202etxt\u2066"),
        ("caf\udce9", r"caf\udce9"),
        ("two\nlines, Größe 7·7 ✓ 猫", "two\nlines, Größe 7·7 ✓ 猫"),
        (r"C:\dir $a$ 'q'", r"C:\dir $a$ 'q'"),
    ],
)
def test_control_characters_are_written_out_and_others_stay(text, shown):
    assert printable(text) == shown
    printable(text).encode()
