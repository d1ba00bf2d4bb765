"""A private package index as people paste it, and what of it cannot be used."""

from __future__ import annotations

import netrc
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from orchestrator.errors import SettingsError
from orchestrator.settings.groups import PrivateIndexSettings
from orchestrator.settings.private_index import as_pasted
from orchestrator.settings.source import SettingsSource

NEXUS = "https://nexus.example.com/repository/pypi/simple"


def read(**values: str) -> PrivateIndexSettings:
    texts = {f"PRIVATE_INDEX_{name.upper()}": value for name, value in values.items()}
    return SettingsSource(lookup=texts.get).read(PrivateIndexSettings)


def parts(index: PrivateIndexSettings) -> tuple[str | None, str | None, str | None]:
    return index.url, index.user, index.password.get_secret_value() if index.password else None


@pytest.mark.parametrize(
    "pasted",
    [
        "https://ada:s3cr%3At@nexus.example.com/repository/pypi/simple",
        " --index-url https://ada:s3cr%3At@nexus.example.com/repository/pypi/simple\n",
        "index-url = https://ada:s3cr%3At@nexus.example.com/repository/pypi/simple",
        "PIP_INDEX_URL='https://ada:s3cr%3At@nexus.example.com/repository/pypi/simple'",
        "https://ada@nexus.example.com/repository/pypi/simple",
        NEXUS,
    ],
)
def test_a_login_in_the_address_is_taken_out_of_it(pasted: str) -> None:
    rest = {} if "s3cr" in pasted else {"password": "s3cr:t"} | ({} if "ada" in pasted else {"user": "ada"})
    assert parts(read(url=pasted, **rest)) == (NEXUS, "ada", "s3cr:t")


def test_an_index_may_have_no_login_and_there_may_be_none_at_all() -> None:
    assert parts(read(url=NEXUS)) == (NEXUS, None, None)
    assert parts(read()) == (None, None, None)
    assert parts(read(url=NEXUS, user="ada", password="from-a-file\n")) == (NEXUS, "ada", "from-a-file")


@pytest.mark.parametrize(
    ("values", "words"),
    [
        ({"url": "nexus.example.com/simple"}, "no address of a package index"),
        ({"url": "ftp://ada:s3cret@nexus.example.com/simple"}, "no address of a package index"),
        ({"url": f"{NEXUS}?token=s3cret"}, "no address of a package index"),
        ({"url": "https://ada:s3cret@nexus:port/simple"}, "no address of a package index"),
        ({"url": "https://ada:s3cret@[::1]:8081/simple"}, "IPv6"),
        ({"url": "https://ada:s3cret@nexus.example.com/simple", "password": "other"}, "another login"),
        ({"url": NEXUS, "user": "ada"}, "PRIVATE_INDEX_PASSWORD is not"),
        ({"url": NEXUS, "password": "s3cret"}, "PRIVATE_INDEX_USER is not"),
        ({"password": "s3cret"}, "PRIVATE_INDEX_URL is not"),
        ({"url": NEXUS, "user": "ada", "password": "s3cret word"}, "PRIVATE_INDEX_PASSWORD cannot stand in a netrc"),
        ({"url": NEXUS, "user": "a\\da", "password": "s3cret"}, "PRIVATE_INDEX_USER cannot stand in a netrc"),
        ({"url": NEXUS, "user": "ada", "password": "s3crét"}, "PRIVATE_INDEX_PASSWORD cannot stand in a netrc"),
    ],
)
def test_what_cannot_be_used_is_refused_without_its_text(values: dict[str, str], words: str) -> None:
    with pytest.raises(SettingsError, match=words) as refused:
        read(**values)
    assert not any(text in str(refused.value) for text in ("s3cr", "nexus:port"))


def test_a_pipeline_has_an_index_of_its_own_and_no_password_in_its_file() -> None:
    texts = {"CHURN_INDEX": "s3cret", "PRIVATE_INDEX_URL": NEXUS}
    source = SettingsSource(
        pipeline="churn",
        values={"PRIVATE_INDEX_USER": "churn"},
        from_env={"PRIVATE_INDEX_PASSWORD": "CHURN_INDEX"},
        lookup=texts.get,
    )
    assert parts(source.read(PrivateIndexSettings)) == (NEXUS, "churn", "s3cret")
    for name, value in (
        ("PRIVATE_INDEX_PASSWORD", "s3cret"),
        ("PRIVATE_INDEX_URL", "https://ada:s3cret@nexus.example.com/simple"),
    ):
        with pytest.raises(SettingsError, match="settings_from_env"):
            SettingsSource(pipeline="churn", values={name: value})


PRINTED = st.text(st.characters(min_codepoint=0x20, max_codepoint=0x7F), min_size=1)


@given(user=PRINTED, password=PRINTED)
def test_python_reads_a_netrc_file_as_it_was_meant(
    tmp_path_factory: pytest.TempPathFactory, user: str, password: str
) -> None:
    if any(char in user + password for char in " \\\x7f") or '"' in (user[0], password[0]):
        with pytest.raises(ValueError, match="netrc"):
            as_pasted(url=NEXUS, user=user, password=password)
        return
    index = as_pasted(url=NEXUS, user=user, password=password)
    file: Path = tmp_path_factory.getbasetemp() / "netrc"
    file.write_text(f"machine nexus.example.com login {index['user']} password {index['password']}\n")
    login = netrc.netrc(file).hosts["nexus.example.com"]
    assert (login[0], login[2]) == (user, password)
