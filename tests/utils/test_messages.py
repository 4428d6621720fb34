"""What messages are made of fits in one line, whatever it was made from."""

from __future__ import annotations

from frozenfusion.utils.messages import first_few, first_line, one_line, printable, shown, some_of


def test_of_many_names_the_first_few_are_given() -> None:
    assert first_few(["a", "b", "c"]) == "a, b, c"
    assert first_few(["a", "b", "c", "d"]) == "a, b, c, …"
    assert first_few(["a", "b"], most=1) == "a, …"
    assert first_few([]) == ""
    assert some_of(["a", "b"], most=2) == "a, b"
    assert some_of(["a", "b", "c", "d"], most=2) == "a, b and 2 more"


def test_of_an_error_the_first_line_or_all_on_one_line_is_given() -> None:
    error = ValueError("\n no luck: \n\t with that. \n")
    assert first_line(error) == "no luck"
    assert one_line(error) == "no luck: with that"
    assert one_line(error, 7) == "no luck"
    assert first_line(KeyError()) == one_line(KeyError()) == "KeyError"
    assert len(first_line(ValueError("x" * 1000))) == len(one_line(ValueError("x" * 1000))) == 200


def test_a_value_is_quoted_short_and_printable() -> None:
    assert shown("caf\u00e9") == "'caf\u00e9'"
    assert shown("a\x1b[2J\n") == r"'a\x1b[2J\n'"
    assert shown("x" * 100) == f"'{'x' * 58}…"
    assert shown(["1"]) == "['1']"


def test_what_a_file_says_is_fit_for_a_terminal() -> None:
    assert printable("é \x1b[31m\n") == "é ?[31m?"
    assert printable(224) == "224"
    assert len(printable("x" * 100)) == 80
