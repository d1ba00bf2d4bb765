"""DAGSTER_POSTGRES_URL is taken as people paste it."""

from __future__ import annotations

from urllib.parse import quote

import pytest
from hypothesis import given
from hypothesis import strategies as st

from orchestrator.errors import SettingsError
from orchestrator.storage.address import DEFAULTS, PostgresAddress

NEON = "postgresql://alex:AbC123dEf@ep-cool-darkness-123456.us-east-2.aws.neon.tech/dbname"
POOLED = "postgresql://alex:AbC123dEf@ep-cool-darkness-123456-pooler.us-east-2.aws.neon.tech/dbname"


def _own(text: str) -> dict[str, str]:
    """What the address says, without what we add."""
    return {name: value for name, value in PostgresAddress.parse(text).arguments().items() if name not in DEFAULTS}


@pytest.mark.parametrize(
    "text",
    [
        f"{NEON}?sslmode=require&channel_binding=require",
        f"psql '{NEON}?sslmode=require&channel_binding=require'",
        f'"{NEON}?sslmode=require&channel_binding=require"\n',
        NEON.replace("postgresql", "postgres") + "?sslmode=require&channel_binding=require",
        NEON.replace("postgresql", "postgresql+psycopg2") + "?sslmode=require&channel_binding=require",
    ],
)
def test_neons_address_is_taken_with_whatever_is_around_it(text: str) -> None:
    assert _own(text) == {
        "host": "ep-cool-darkness-123456.us-east-2.aws.neon.tech",
        "user": "alex",
        "password": "AbC123dEf",
        "dbname": "dbname",
        "sslmode": "require",
        "channel_binding": "require",
    }


def test_herokus_and_rdss_addresses_are_taken() -> None:
    heroku = PostgresAddress.parse("postgres://u1:p1@ec2-1-2-3-4.compute-1.amazonaws.com:5432/d8r0")
    assert (heroku.host, heroku.port, heroku.database) == ("ec2-1-2-3-4.compute-1.amazonaws.com", "5432", "d8r0")
    rds = PostgresAddress.parse("postgresql://m@db.abc.eu-west-1.rds.amazonaws.com:5433/orch?sslmode=verify-full")
    assert (rds.user, rds.password, rds.port, dict(rds.options)) == ("m", "", "5433", {"sslmode": "verify-full"})


@pytest.mark.parametrize(
    "options", ["-csearch_path=orch", "-csearch_path%3Dorch", "-c%20search_path%3Dorch", "-c search_path=orch,public"]
)
def test_options_may_be_encoded_or_not(options: str) -> None:
    address = PostgresAddress.parse(f"{NEON}?options={options}&sslmode=require")
    assert address.schema == "orch"
    assert "search_path=orch" in address.arguments()["options"]
    assert address.arguments()["sslmode"] == "require"


@pytest.mark.parametrize("password", ["p@ss w/rd:1", "a?b#c", "x%y", "100%25", "@", "äöü€", "p+q"])
def test_a_password_may_be_encoded_or_not(password: str) -> None:
    assert _own(f"postgresql://u:{quote(password, safe='')}@db:5432/x?sslmode=require")["password"] == password
    if "%25" not in password:
        assert _own(f"postgres://u:{password}@db.example.com:5432/x?sslmode=require")["password"] == password


@pytest.mark.parametrize(
    ("text", "host", "password"),
    [
        ("postgresql://user:123/secret@host/db", "host", "123/secret"),
        ("postgresql://user:p@ss/word@db.x/neondb", "db.x", "p@ss/word"),
        ("postgresql://user:12?secret@host/db", "host", "12?secret"),
        ("postgresql://user:pw@h1:5432,h2:5433/db", "h1,h2", "pw"),
        ("postgresql://user:pw@%2Fvar%2Frun%2Fpostgresql/db", "/var/run/postgresql", "pw"),
    ],
)
def test_no_part_of_a_password_is_taken_for_host_or_database(text: str, host: str, password: str) -> None:
    address = PostgresAddress.parse(text)
    assert (address.arguments()["host"], address.arguments()["password"]) == (host, password)
    assert "secret" not in str(address)
    assert "word" not in str(address)


@given(st.text(st.characters(codec="utf-8", exclude_categories=("Cc", "Cs")), min_size=1))
def test_whatever_was_encoded_is_what_is_sent(text: str) -> None:
    encoded = quote(text, safe="")
    own = _own(f"postgresql://{encoded}:{encoded}@db/{encoded}?application_name={encoded}&options=a%40b@c")
    assert (own["user"], own["password"], own["dbname"]) == (text, text, text)


@pytest.mark.parametrize(
    "text", ["", "db.example.com", "mysql://u:p@db/x", "host=db dbname=x", "postgres://u:p@ho st/x", "sqlite:///x"]
)
def test_what_is_no_address_is_refused_without_its_secrets(text: str) -> None:
    with pytest.raises(SettingsError, match="DAGSTER_POSTGRES_URL") as refused:
        PostgresAddress.parse(text)
    assert "u:p" not in str(refused.value)


def test_a_pooled_host_with_options_says_what_to_do_instead() -> None:
    with pytest.raises(SettingsError, match="ALTER ROLE alex IN DATABASE dbname SET search_path = orch"):
        PostgresAddress.parse(f"{POOLED}?sslmode=require&options=-csearch_path%3Dorch")
    assert PostgresAddress.parse(f"{POOLED}?sslmode=require").is_pooler


def test_no_text_of_it_holds_the_password() -> None:
    address = PostgresAddress.parse("postgresql://u:s3cr3t@db/x?sslmode=require")
    assert "s3cr3t" not in f"{address} {address!r}"
    assert str(address) == "db:5432/x"


def test_what_the_address_says_is_stronger_than_what_we_would_take() -> None:
    assert PostgresAddress.parse(f"{NEON}?connect_timeout=3").arguments()["connect_timeout"] == "3"
