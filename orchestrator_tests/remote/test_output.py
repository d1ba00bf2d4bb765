"""A flood of output fills neither memory nor disk, hides no end of a training, and shows no secret."""

from __future__ import annotations

import gzip
import re
import time
import tracemalloc
from collections.abc import Callable
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from orchestrator.remote.output import LAST_BYTES, LONGEST_LINE, NOTICE_SECONDS, TrainingOutput, whole_output
from orchestrator_tests.support.follower import Follower

SECRET = "hunter2-hunter2"


class Log:
    """A log, and the output that it shows."""

    def __init__(self, *, most_bytes: int = 100_000_000) -> None:
        self.pieces: list[str] = []
        self.now = 0.0
        self.output = TrainingOutput(
            self.pieces.append, secrets=[SECRET], most_bytes=most_bytes, clock=lambda: self.now
        )

    @property
    def text(self) -> str:
        return "".join(self.pieces)

    def printed(self, *pieces: str) -> str:
        for piece in pieces:
            self.output.feed(piece)
        self.output.finish()
        return self.text


texts = st.lists(
    st.sampled_from(["a", "\n", "\r", SECRET[:5], SECRET, "\x1b[31m", "\x1b[", "\x1b]0;", "\x07", "é"])
).map("".join)


@given(text=texts, cuts=st.lists(st.integers(0, 60)))
def test_however_it_is_cut_the_log_is_the_same_and_holds_no_secret(text: str, cuts: list[int]) -> None:
    places = sorted({0, len(text), *(cut for cut in cuts if cut < len(text))})
    seen = Log().printed(*(text[start:end] for start, end in pairwise(places)))
    assert seen == Log().printed(text)
    assert SECRET not in re.sub(r"\x1b\[[0-9;]*m", "", seen)


def test_a_modest_output_comes_at_once_and_as_it_is() -> None:
    log = Log()
    log.output.feed("epoch 1\nepoch 2: ")
    assert log.text == "epoch 1\nepoch 2: "
    assert log.output.most_behind() is None
    log.output.finish()
    assert log.text == "epoch 1\nepoch 2: "
    assert log.output.left_out == 0


def test_of_a_flood_the_log_holds_the_beginning_and_the_end() -> None:
    log = Log(most_bytes=1_000_000)
    numbers = [f"{number:07d}\n" for number in range(400_000)]
    for first in range(0, len(numbers), 1000):
        log.now += 1
        log.output.feed("".join(numbers[first : first + 1000]))
    assert len(log.text) < 1_000_000
    log.output.finish()
    lines = log.text.splitlines()
    shown = [int(line) for line in lines if line.isdigit()]
    assert shown[0] == 0
    assert shown[-1] == 399_999
    assert shown == sorted(shown)
    assert len(log.text) < 1_001_000
    notices = [line for line in lines if not line.isdigit()]
    assert notices[-1] == "[orchestrator: 2.2 MB of output left out here (MAX_LOG_MB=1); what follows is its end]"
    assert all("so far" in notice for notice in notices[:-1])
    assert len(notices) == 1 + 400 * 3 // 4 // NOTICE_SECONDS
    assert abs(len("".join(numbers)) - 8 * len(shown) - log.output.left_out) < 10


@pytest.mark.parametrize("piece", ["x", "\r50%", "é", "\x1b[31m.", "a\n"])
def test_memory_does_not_grow_with_the_output(piece: str) -> None:
    output = TrainingOutput(lambda _: None, secrets=[SECRET], most_bytes=100_000)
    block = piece * 4000
    tracemalloc.start()
    try:
        for _ in range(30):
            output.feed(block)
        output.finish()
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert peak < 2_000_000


@pytest.mark.parametrize("cut", range(len(SECRET) + 1))
@pytest.mark.parametrize("end", ["\n", "x" * 100])
def test_where_output_is_skipped_no_part_of_a_secret_shows(cut: int, end: str) -> None:
    log = Log(most_bytes=400)
    log.output.feed(f"{'begin' * 100}\n")
    assert log.output.most_behind() == 100
    log.output.feed(f"the secret is {SECRET[:4]}")
    log.output.skip(1_000_000)
    seen = log.printed(f"{SECRET[cut:]}{end}and on\nthe end\n")
    assert seen.endswith("the end\n")
    assert "1.0 MB of output left out" in seen
    assert not any(SECRET[start : start + 6] in seen for start in range(len(SECRET) - 6))


def test_a_full_disk_ends_no_training(caplog: pytest.LogCaptureFixture) -> None:
    def write(text: str) -> None:
        raise OSError(28, "No space left on device")

    output = TrainingOutput(write, secrets=[], most_bytes=1_000_000)
    for _ in range(3):
        output.feed("12345\n")
    output.finish()
    assert output.left_out == 18
    (warning,) = caplog.messages
    assert "No space left" in warning


def test_a_log_in_ascii_takes_any_text() -> None:
    written: list[str] = []
    output = TrainingOutput(
        lambda text: written.append(text.encode("ascii").decode()), secrets=[], most_bytes=1_000_000
    )
    output.feed("épreuve\n")
    assert written == ["\\xe9preuve\n"]


def test_lines_that_an_error_quotes_are_short_masked_and_colourless() -> None:
    lines = [f"\r{percent}%" for percent in range(5)] + [
        "\r1%\r2%\r 3%\r",
        f"\x1b[31mValueError\x1b[0m: {SECRET}",
        "x" * 9999,
    ]
    quoted = Log().output.readable(lines)
    assert quoted[5:7] == [" 3%", "ValueError: ****"]
    assert len(quoted[7]) == LONGEST_LINE + 1
    assert len(quoted) == len(lines)


@pytest.mark.parametrize("cut", [3, 8, 14])
def test_the_end_of_an_output_that_begins_within_a_secret_shows_nothing_of_it(cut: int) -> None:
    (line,) = Log().output.readable([SECRET[cut:] + "x" * (LAST_BYTES - len(SECRET) + cut)])
    assert not line.startswith(SECRET[cut:])


@pytest.mark.parametrize(
    ("printed", "most_bytes", "complete"),
    [("line\n" * 100_000, 1_000_000, True), ("line\n" * 400_000, 150_000, False)],
)
def test_the_whole_output_is_kept_compressed_and_within_bounds(printed: str, most_bytes: int, complete: bool) -> None:
    def follow(write: Callable[[str], None]) -> None:
        for first in range(0, len(printed), 10_000):
            write(printed[first : first + 10_000])
        write(f"\x1b]0;x\x07it is {SECRET[:5]}")
        write(f"{SECRET[5:]}\n")

    with whole_output(follow, secrets=[SECRET], most_bytes=most_bytes) as file:
        packed = file.read()
    text = gzip.decompress(packed).decode()
    assert len(packed) <= most_bytes
    assert text.startswith("line\nline\n")
    if complete:
        assert text == printed + "it is ****\n"
    else:
        assert re.search(r"\n\[orchestrator: the output goes on; these are its first 1\.5\d? MB\]\n$", text)


def test_an_output_that_cannot_be_compressed_is_kept_within_bounds() -> None:
    import random

    def follow(write: Callable[[str], None]) -> None:
        while True:
            write(random.randbytes(5000).hex() + "\n")

    with whole_output(follow, secrets=[], most_bytes=1_000_000) as file:
        assert 400_000 < len(file.read()) <= 1_000_000


# ---- over SSH


def test_the_end_of_a_training_that_floods_its_output_is_noticed_at_once(follower: Follower) -> None:
    log = Log(most_bytes=4_000_000)
    script = (
        "import sys\nline = 'x' * 99 + chr(10)\nfor _ in range(600): sys.stdout.write(line * 10_000)\nprint('the end')"
    )
    follower.start("python3", "-c", script)
    began = time.monotonic()
    training_exit = follower.training.follow(
        log.output.feed, most_behind=log.output.most_behind, skipped=log.output.skip
    )
    log.output.finish()
    seconds = time.monotonic() - began
    assert training_exit.succeeded
    assert log.text.startswith("x" * 99)
    assert log.text.endswith("\nthe end\n")
    assert len(log.text) < 4_100_000
    size = (follower.directory / "log").stat().st_size
    assert abs(len(log.text) + log.output.left_out - size) < 1000
    assert seconds < 60


def test_a_log_that_is_followed_again_from_its_beginning_is_whole(follower: Follower) -> None:
    follower.start("python3", "-c", "for number in range(200_000): print(number)")
    log = Log(most_bytes=100_000)
    follower.training.follow(log.output.feed, most_behind=log.output.most_behind, skipped=log.output.skip)
    assert follower.follow().succeeded
    assert follower.text.splitlines() == [str(number) for number in range(200_000)]
