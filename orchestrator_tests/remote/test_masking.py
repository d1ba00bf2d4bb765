"""Secrets are hidden in a text that comes in pieces."""

from __future__ import annotations

from urllib.parse import quote

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
