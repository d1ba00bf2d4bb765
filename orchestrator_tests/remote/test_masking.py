"""Secrets are hidden in a text that comes in pieces."""

from __future__ import annotations

import base64
import html
import json
import re
import shlex
from collections.abc import Callable
from urllib.parse import quote, quote_plus

import pytest
from hypothesis import given
from hypothesis import strategies as st

from orchestrator.remote.masking import MASK, Masker

# Few letters, so that secrets overlap, contain each other, and end where others begin.
letters = st.text("ab/ é", max_size=12)
secrets = st.lists(st.text("ab/ é", max_size=7), max_size=4)


def streamed(masker: Masker, pieces: list[str]) -> str:
    return "".join([*map(masker.feed, pieces), masker.flush()])


@given(secrets=secrets, pieces=st.lists(letters, max_size=8))
def test_pieces_give_what_the_whole_gives(secrets: list[str], pieces: list[str]) -> None:
    assert streamed(Masker(secrets), pieces) == Masker(secrets).mask("".join(pieces))


@given(secrets=secrets, pieces=st.lists(letters | secrets.flatmap(lambda s: st.just("".join(s))), max_size=8))
def test_no_secret_of_any_length_worth_hiding_comes_out(secrets: list[str], pieces: list[str]) -> None:
    shown = streamed(Masker(secrets), pieces)
    for secret in (secret for secret in secrets if len(secret) >= 4):
        assert secret not in shown
        assert quote(secret, safe="") not in shown


@given(secrets=secrets, text=st.text("ab/ é", max_size=40))
def test_only_what_may_become_a_secret_is_held_back(secrets: list[str], text: str) -> None:
    masker = Masker(secrets)
    held = len(Masker(secrets).mask(text)) - len(masker.feed(text))
    forms = [form for secret in secrets for form in (secret, quote(secret, safe=""))]
    assert held < max([1, *map(len, forms)])


def test_a_secret_split_over_pieces_is_hidden() -> None:
    masker = Masker(["hunter22"])
    assert masker.feed("password=hun") == "password="
    assert masker.feed("ter2") == ""
    assert masker.feed("2\n") == f"{MASK}\n"


def test_what_only_began_like_a_secret_comes_out_unchanged() -> None:
    masker = Masker(["hunter22"])
    assert masker.feed("the hunt") == "the "
    assert masker.feed(" is on") == "hunt is on"


def test_the_longest_of_secrets_that_begin_alike_is_hidden_whole() -> None:
    masker = Masker(["token", "token-and-more"])
    assert streamed(masker, ["my token", "-and-", "more, my token", "!"]) == f"my {MASK}, my {MASK}!"


def test_a_secret_is_hidden_in_a_url_too() -> None:
    assert Masker(["p@ss/w rd"]).mask("http://me:p%40ss%2Fw%20rd@host p%40ss%2Fw+rd") == (
        f"http://me:{MASK}@host {MASK}"
    )


def test_empty_and_very_short_secrets_are_ignored() -> None:
    assert Masker(["", "a", "abc"]).mask("abc a") == "abc a"
    assert Masker([]).feed("anything") == "anything"


SECRETS = ("s3cr3t-of/the+team=", 'with "quotes" and \\ and é', "hunter2hunter2", "it's\tmine")

ENCODED = {
    "json": json.dumps,
    "json in json": lambda text: json.dumps(json.dumps({"key": text})),
    "json of php": lambda text: json.dumps(text).replace("/", "\\/"),
    "json, unescaped": lambda text: json.dumps(text, ensure_ascii=False),
    "repr": repr,
    "bytes": lambda text: repr(text.encode()),
    "shell": shlex.quote,
    "html": html.escape,
    "percent": lambda text: quote(text, safe=""),
    "percent, small": lambda text: re.sub("%..", lambda found: found[0].lower(), quote(text, safe="")),
    "form": quote_plus,
    "base64": lambda text: base64.b64encode(text.encode()).decode(),
    "base64 of a URL": lambda text: base64.urlsafe_b64encode(text.encode()).decode(),
    "hexadecimal": lambda text: text.encode().hex().upper(),
}


@pytest.mark.parametrize("encode", ENCODED.values(), ids=ENCODED)
@pytest.mark.parametrize("secret", SECRETS)
def test_a_secret_is_hidden_in_the_forms_that_programs_print(secret: str, encode: Callable[[str], str]) -> None:
    encoded = encode(secret)
    text = f"it is {encoded}, is it?"
    masked = Masker([secret]).mask(text)
    assert MASK in masked
    assert len(masked) <= len("it is '****', is it?") + 20, "but for what is around it"
    assert streamed(Masker([secret]), list(text)) == masked


@pytest.mark.parametrize("user", ["", "u", "me", "bob", "ci-user"])
@pytest.mark.parametrize("behind", ["", "\n", ":x", " and more"])
def test_a_secret_is_hidden_within_what_was_encoded_in_base64(user: str, behind: str) -> None:
    for encode in (base64.b64encode, base64.urlsafe_b64encode):
        encoded = encode(f"{user}:hunter2hunter2{behind}".encode()).decode()
        masked = Masker(["hunter2hunter2"]).mask(f"Authorization: Basic {encoded}")
        assert MASK in masked
        left = masked.removeprefix("Authorization: Basic ").replace(MASK, "")
        assert len(left) < len(encoded) - 16


def test_a_secret_is_hidden_in_base64_of_several_lines() -> None:
    key = "-----BEGIN PRIVATE KEY-----" + "MIIEvQ7Zx+/k" * 40
    for width in (64, 76):
        encoded = base64.b64encode(key.encode()).decode()
        lines = [encoded[first : first + width] for first in range(0, len(encoded), width)]
        assert set(Masker([key]).mask("\n".join(lines)).splitlines()) == {MASK}


def test_colours_within_a_secret_do_not_show_it() -> None:
    text = "it is \x1b[1mhunt\x1b[31mer\x1b[0m22, \x1b[32mtruly"
    masked = "it is \x1b[1m****\x1b[31m\x1b[0m, \x1b[32mtruly"
    assert Masker(["hunter22"]).mask(text) == masked
    masker = Masker(["hunter22"])
    pieces = ["it is ", "\x1b[1m", "hu", "nt", "\x1b[31m", "er", "\x1b[0m", "2", "2, ", "\x1b[32m", "truly"]
    assert streamed(masker, pieces) == masked


@given(
    secrets=secrets,
    pieces=st.lists(st.sampled_from(["a", "b", "ab", "/", " ", "é", "\x1b[1m", "\x1b[0m"]), max_size=30),
)
def test_pieces_give_what_the_whole_gives_in_colours_too(secrets: list[str], pieces: list[str]) -> None:
    masked = streamed(Masker(secrets), pieces)
    assert masked == Masker(secrets).mask("".join(pieces))
    plain = re.sub(r"\x1b\[[0-9;]*m", "", "".join(pieces))
    assert re.sub(r"\x1b\[[0-9;]*m", "", masked) == Masker(secrets).mask(plain)


def test_a_secret_that_cannot_be_printed_as_it_is_is_hidden_as_it_is_printed() -> None:
    assert Masker(["hunter\u200b22\x1b[2J!!"]).mask("it is hunter22!!") == f"it is {MASK}"
