"""Git remotes are anybody's text: what is recorded and passed on is an address, and no login, option or helper."""

from __future__ import annotations

import re
import string

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from orchestrator.resources.jenkins.remotes import GitAddress, commit_url, repository_key, without_credentials

SHA = "0123456789abcdef0123456789abcdef01234567"


@pytest.mark.parametrize(
    ("remote", "clean"),
    [
        ("https://user:p@ss@host/x.git", "https://host/x.git"),
        ("https://token@host/x.git", "https://host/x.git"),
        ("HTTPS://me:t0ken@host:8443/x", "https://host:8443/x"),
        ("https://host/r.git?private_token=t0ken", "https://host/r.git"),
        ("https://host/r.git#access_token=t0ken", "https://host/r.git"),
        ("ssh://git:pw@host/x", "ssh://git@host/x"),
        ("ssh://git:p@w:d@host:22/x", "ssh://git@host:22/x"),
        ("ssh://git@host:22/x", "ssh://git@host:22/x"),
        ("git://user:t0ken@host/x", "git://host/x"),
        ("http://127.0.0.1:8080/churn.git", "http://127.0.0.1:8080/churn.git"),
        ("https://[::1]:8443/x", "https://[::1]:8443/x"),
        ("https://host/@scope/x", "https://host/@scope/x"),
        ("https://dev.azure.com/org/My Project/_git/x", "https://dev.azure.com/org/My Project/_git/x"),
        ("git@host:x", "git@host:x"),
        ("git@host:team/x.git?token=t0ken", "git@host:team/x.git"),
        ("mirror:team/x.git", "mirror:team/x.git"),
    ],
)
def test_an_address_is_kept_without_its_login(remote: str, clean: str) -> None:
    assert str(GitAddress.parse(remote)) == clean
    assert str(GitAddress.parse(clean)) == clean
    assert without_credentials(remote) == clean


@pytest.mark.parametrize(
    "remote",
    [
        "",
        "--upload-pack=id",
        "-e",
        "-oProxyCommand=id:x",
        "--backend=databricks",
        "ssh://-oProxyCommand=id/x",
        "ssh://-oProxyCommand=id@host/x",
        "ssh://git@-oProxyCommand=id/x",
        "-oProxyCommand=id@host:x",
        "host:-x",
        "ext::sh -c id",
        "ext::https://host/x",
        "fd::17",
        "transport::https://host/x",
        "file:///etc",
        "file:x",
        "FILE:///etc",
        "ftp://host/x",
        "svn+ssh://host/x",
        "javascript://host/x",
        "/srv/git/churn.git",
        "../churn",
        "C:\\churn",
        "C:/churn",
        "https://",
        "https://host",
        "https://host/",
        "https://[x",
        "https://host:99999999/x",
        "https://host:port/x",
        "https://good.example\\@evil.example/x",
        "https://user:p/ss@host/x",
        "https://user:12/34@host/x",
        "https://tok/en@host/x",
        "https://user:p#ss@host/x",
        "https://user:p?ss@host/x",
        "git:s3cret@host:x",
        "https://host/a\nb",
        "https://host/a%0ahost=evil",
        "https://host/%00",
        "\x1b]0;pwned\x07https://host/x",
        "https://host/\u202egnp.x",
        "https://host/\ud800",
        "https://h\u043est/x",
        "https://host/" + "x" * 3000,
    ],
)
def test_what_is_no_such_address_is_refused_and_not_shown(remote: str) -> None:
    with pytest.raises(ValueError, match=r"its? ") as error:
        GitAddress.parse(remote)
    words = str(error.value) + without_credentials(remote)
    assert words.isprintable()
    assert not any(secret in words for secret in ("s3cret", "p/ss", "34@", "en@", "ss@", "pwned"))


secrets = st.text(string.ascii_letters + string.digits + "@:/?#%!$&+=~-_. ", min_size=4, max_size=12).map(
    "Zq{}Zq".format
)


@given(
    scheme=st.sampled_from(["https", "http", "ssh", "git", "HTTPS", "Ssh"]),
    user=st.sampled_from(["git", "me", ""]),
    secret=secrets,
)
def test_no_part_of_a_password_is_kept_or_shown(scheme: str, user: str, secret: str) -> None:
    for remote in (
        f"{scheme}://{user}:{secret}@host.example/team/x.git",
        f"{user or 'git'}:{secret}@host.example:x.git",
    ):
        kept = without_credentials(remote)
        parts = [part for part in re.split(r"[@:/?#]", secret) if "Zq" in part]
        assert not any(part in kept for part in parts), kept


@given(secret=st.text(string.ascii_letters + string.digits, min_size=4).map("Zq{}".format))
def test_no_query_or_fragment_is_kept(secret: str) -> None:
    for start in ("https://host/x.git", "ssh://git@host/x", "git://host/x", "git@host:x"):
        for end in (f"?token={secret}", f"#{secret}", f"?a#{secret}", f"#a?{secret}"):
            assert str(GitAddress.parse(start + end)) == start


@given(remote=st.text() | st.text(st.sampled_from("ab-@:/?#[]\\%0 .$~")).map("https://{}".format))
def test_any_text_is_an_address_or_refused(remote: str) -> None:
    shown = without_credentials(remote)
    assert shown.isprintable()
    assert repository_key(remote) == repository_key(remote).lower()
    try:
        parsed = GitAddress.parse(remote)
    except ValueError:
        return
    assert GitAddress.parse(str(parsed)) == parsed
    assert not str(parsed).startswith("-")
    assert not parsed.host.startswith("-")
    assert "@" not in str(parsed).partition("://")[2].partition("/")[0] or parsed.scheme == "ssh"


@given(host=st.text(string.ascii_lowercase + string.digits + ".-", min_size=1))
def test_only_known_hosts_are_linked(host: str) -> None:
    assume(host.rstrip(".") not in ("github.com", "gitlab.com", "bitbucket.org", "codeberg.org"))
    for known in ("github.com", "gitlab.com", "bitbucket.org"):
        for name in (host, f"{known}.{host}", f"{host}{known}"):
            if name.rstrip(".") != known:
                assert commit_url(f"https://{name}/a/b", SHA) is None


@pytest.mark.parametrize(
    "remote",
    [
        "https://github.com.evil.example/a/b",
        "https://gitlab.evil.example/a/b",
        "https://evil.example/github.com/a/b",
        "https://github.com@evil.example/a/b",
        "git@github.com.evil.example:a/b",
        "https://github.com:8443/a/b",
    ],
)
def test_a_host_that_looks_like_a_known_one_is_not_linked(remote: str) -> None:
    assert commit_url(remote, SHA) is None
