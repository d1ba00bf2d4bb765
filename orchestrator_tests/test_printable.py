"""What others print comes out printable, however it is cut into pieces, and hides nothing."""

from __future__ import annotations

import itertools
import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from orchestrator.errors import TrainingFailed
from orchestrator.printable import LONGEST_STATE, PrintableStream, printable

COLOUR = re.compile(r"\x1b\[[0-9;:]*m")

FRAGMENTS = (
    *("\x1b", "\x1b[", "\x9b", "31", ";", "8", "0", ":", "m", "K", "\x1b]52;c;", "\x1b]8;;", "\x1bP", "\x1b_", "\x1bX"),
    *("\x07", "\x1b\\", "\x9c", "\x18", "\r", "\n", "\t", "\b", "\r\n", "\x0b", "\x85", "\0", "\x7f", "\x90"),
    *("\u202e", "\u2066", "\u200b", "\ufeff", "\u2028", "\xa0", "\ue000", "\ud800", "é", "漢", "👩", "a", "bc", "  "),
)
fragments = st.sampled_from(FRAGMENTS)
texts = st.lists(fragments | st.text(max_size=3), max_size=30).map("".join)


def streamed(pieces: list[str]) -> str:
    stream = PrintableStream()
    return "".join([*map(stream.feed, pieces), stream.flush()])


def is_clean(text: str) -> bool:
    return all(char in "\n\t" or char.isprintable() for char in COLOUR.sub("", text))


@given(text=texts, cuts=st.lists(st.integers(0, 100), max_size=10))
def test_however_it_is_cut_only_printable_text_and_whole_colours_come_out(text: str, cuts: list[int]) -> None:
    places = sorted({0, len(text), *(cut for cut in cuts if cut < len(text))})
    pieces = [text[start:end] for start, end in itertools.pairwise(places)]
    assert is_clean(printable(text))
    assert streamed(pieces) == streamed(list(text)) == printable(text)
    assert printable(printable(text)) == printable(text)
    printable(text).encode()


@given(data=st.binary(max_size=200))
def test_any_bytes_come_out_clean(data: bytes) -> None:
    for encoding in ("utf-8", "latin-1"):
        assert is_clean(printable(data.decode(encoding, errors="replace")))


@pytest.mark.parametrize(
    ("printed", "seen"),
    [
        ("a\x1b]52;c;cm0gLXJm\x07b", "ab"),  # the clipboard
        ("a\x1b]0;title\x1b\\b", "ab"),
        ("\x1b]8;;https://evil.example\x1b\\click\x1b]8;;\x1b\\!", "click!"),
        ("a\x9d0;title\x9cb", "ab"),
        ("a\x1b[2J\x1b[1;1H\x1b[3Ab\x1b[?25l", "ab"),
        ("a\x1b[8mhidden\x1b[0m", "ahidden\x1b[0m"),
        ("a\x1b[1;8;31mred\x1b[m", "a\x1b[1;31mred\x1b[m"),
        ("\x1b[38;5;8mgrey\x1b[0m", "\x1b[38;5;8mgrey\x1b[0m"),
        ("\x1b[38;2;8;8;8mgrey\x1b[0m", "\x1b[38;2;8;8;8mgrey\x1b[0m"),
        ("\x1b[008mhidden", "hidden"),
        ("\x9b31mred\x9b0m", "\x1b[31mred\x1b[0m"),
        ("a\x1bPq#0;2;0\x1b\\b\x1b_app\x1b\\c\x1b^pm\x1b\\d\x1bXsos\x1b\\e", "abcde"),
        ("a\x1bcb\x1b(0c\x1b#8d", "abcd"),
        ("a\x1b", "a"),
        ("a\x1b\nb", "a\nb"),
        ("a\x1b[3\nb", "a\nb"),
        ("a\x1b]0;nobody ends this\nb", "a\nb"),
        ("hun\b\bter", "hunter"),
        ("abc\u202edcb\u202c\u2066x\u2069\u200b", "abcdcbx"),
        ("\x1b[31mred", "\x1b[31mred\x1b[0m"),
        ("a\0\x07\x7f\x85b", "ab"),
        ("a\xa0b\u2028c\x0bd", "a b c\nd"),
        ("lines\r\nof\r\nDOS\r\n", "lines\nof\nDOS\n"),
    ],
)
def test_control_sequences_are_left_out_but_for_colours(printed: str, seen: str) -> None:
    assert printable(printed) == seen
    assert streamed(list(printed)) == seen


def test_of_a_progress_bar_some_states_and_the_last_stay() -> None:
    bar = "".join(f"\r{percent:3d}%|{'#' * (percent // 10)}" for percent in range(101))
    lines = printable(f"begin\n{bar}\ndone\n").splitlines()
    assert [line.partition("%")[0].strip() for line in lines] == [
        "begin",
        "0",
        "1",
        "3",
        "7",
        "15",
        "31",
        "63",
        "100",
        "done",
    ]
    assert printable("\r 1%\r 2%\r 3%\r    \r\nnext") == " 1%\n 2%\n 3%\nnext"
    assert printable("loading... \r50%\rdone") == "loading... \n50%\ndone"


def test_what_is_printed_is_shown_at_once() -> None:
    stream = PrintableStream()
    assert stream.feed("Epoch 1: ") == "Epoch 1: "
    assert stream.feed(".") == "."
    assert stream.feed("\r 10%") == "\n 10%"


@pytest.mark.parametrize("begin", ["", "\r1\r2\r", "\x1b[", "\x1b]0;", "\x1bP", "\r1\r2\r\x1b[31m"])
@pytest.mark.parametrize("endless", ["x", "1", " ", "\r", "\x1b[1m", "\b", "\x1b[", "\x1b]", "a\r"])
def test_memory_is_bounded_whatever_never_ends(begin: str, endless: str) -> None:
    stream = PrintableStream()
    stream.feed(begin)
    for _ in range(50):
        stream.feed(endless * 2000)
    assert len(stream.flush()) < 2 * LONGEST_STATE + 10 * 2000


def test_an_error_that_quotes_others_speaks_to_no_terminal() -> None:
    error = TrainingFailed("build 7: \x1b]0;owned\x07ValueError: \x1b[2Jbad\rworse\nlast line")
    assert str(error) == "build 7: ValueError: bad\nworse\nlast line"
