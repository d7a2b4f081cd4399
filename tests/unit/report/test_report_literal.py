"""Text from a service can neither command the terminal nor rich."""

import unicodedata

import pytest
from hypothesis import given
from hypothesis import strategies as st
from rich.console import Console

from pinchpoint.report.literal import literal, visible

HOSTILE = st.text(
    alphabet=st.one_of(
        st.sampled_from("\x1b[]\x07\x9b\x9d\x00\r\n\t\u202e\u2028\ufeff\\/;:mH0123 bold"), st.characters(codec=None)
    )
)


@given(HOSTILE)
def test_no_control_format_or_surrogate_character_survives(text: str) -> None:
    kept = visible(text)
    assert not [c for c in kept if unicodedata.category(c) in ("Cc", "Cs", "Zl", "Zp")]
    assert not set(kept) & set("\u061c\u200b\u200e\u200f\u202a\u202e\u2066\u2069\ufeff")


@given(HOSTILE)
def test_cleaning_twice_changes_nothing(text: str) -> None:
    assert visible(visible(text)) == visible(text)


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("\x1b[31mred\x1b[0m", "red"),
        ("\x1b]0;new title\x07after", "after"),
        ("\x1b]8;;http://evil.example\x1b\\click\x1b]8;;\x1b\\", "click"),
        ("\x1b]52;c;ZXZpbA==", ""),  # a clipboard write that is never ended
        ("\x1bcreset", "reset"),
        ("two\r\nlines", "two lines"),
        ("abc\x00def", "abc\N{REPLACEMENT CHARACTER}def"),
        ("left\u202eright", "left\N{REPLACEMENT CHARACTER}right"),
        ("[bold]not markup[/bold]", "[bold]not markup[/bold]"),
    ],
)
def test_known_attacks_become_plain_text(text: str, shown: str) -> None:
    assert visible(text) == shown


def test_long_text_is_cut_with_an_ellipsis() -> None:
    assert visible("x" * 10_000, length_max=20) == "x" * 19 + "…"


@pytest.mark.parametrize("text", ["[red]x[/red]", "[link=http://a.example]x[/link]", "[/]", "[@click=app.quit]x"])
def test_rich_prints_square_brackets_literally(text: str) -> None:
    console = Console(width=80, color_system="truecolor", force_terminal=True)
    with console.capture() as capture:
        console.print(literal(text), highlight=False)
    assert capture.get() == text + "\n"
