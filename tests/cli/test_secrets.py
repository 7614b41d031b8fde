# SPDX-License-Identifier: GPL-3.0-or-later
"""No command tells a password, whatever stands around it in a url."""

import io
import json
import logging
import os
from contextlib import redirect_stderr, redirect_stdout
from pathlib import Path

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from gatekeeper.cli import main
from gatekeeper.config import config_file
from gatekeeper.config.schema import StoreSection
from gatekeeper.core.redaction import hide_passwords, holds_secret
from gatekeeper.stores.redis.servers import UrlMistake, parse_redis_url

PIECES = ("hunter", "zwei2x")
"""What the password is made of; no message may have either."""

SCHEMES = st.sampled_from(
    ["redis", "rediss", "unix", "redis+sentinel", "redis+cluster", "REDIS", "redis+x", "mysql", "sqlite", "memory", ""]
)
ODD = st.sampled_from([*"/?#@:%[]\\ \n\t\0'\"&=,;é\u2028", "%zz", "%2F", "://", "", "@h@", "\u2100", "[::"])
HOSTS = st.sampled_from(["h", "h:1", "h:1,i:2", "[::1]:1", "h:x", "", "h:99999", "é", "[", "h h"])
PATHS = st.sampled_from(["", "/", "/0", "/s/0", "/x", "?db=0", "?nonsense=1", "#x", "?db=x", "?ssl_ca_certs=/gone"])


@st.composite
def urls(draw: st.DrawFn) -> str:
    """A url with PIECES somewhere in its password."""
    password = PIECES[0] + draw(ODD) + PIECES[1]
    scheme = draw(SCHEMES)
    form = draw(
        st.sampled_from(["{s}://u:{p}@{h}{t}", "{s}://:{p}@{h}{t}", "{s}://u:{p}", "{s}:u:{p}@{h}{t}", "u:{p}@{h}{t}"])
        | st.sampled_from(["{s}://{p}@u:{p}@{h}{t}", "{s}://{h}{t}?password={p}", "{s}:///{p}@{h}{t}?username={p}"])
    )
    if form == "{s}://u:{p}":
        password = password.replace("@", "")  # what comes after a lone @ is a host
    return form.format(s=scheme, p=password, h=draw(HOSTS), t=draw(PATHS))


def said(*arguments: str) -> str:
    """All that a command says, with what it logs."""
    out, log = io.StringIO(), io.StringIO()
    handler = logging.StreamHandler(log)
    logging.getLogger().addHandler(handler)
    try:
        with redirect_stdout(out), redirect_stderr(out):
            main(list(arguments))
    except SystemExit:
        pass
    finally:
        logging.getLogger().removeHandler(handler)
    return out.getvalue() + log.getvalue()


@pytest.mark.slow
@settings(max_examples=60)
@given(
    urls(), st.sampled_from(["[store]\nurl = {}", "[store]\ntimeout = {}", "hostname = {}", "mode = {}", "[x]\n{} = 1"])
)
@example("redis://user:hunter/zwei2x@h/0", "[store]\nurl = {}")
@example("redis://user:hunter?zwei2x@h/0", "[store]\nurl = {}")
@example("redis://user:hunter#zwei2x@h/0", "[store]\nurl = {}")
def test_check_config_tells_no_password(tmp_path_factory: pytest.TempPathFactory, url: str, text: str) -> None:
    path = tmp_path_factory.getbasetemp() / "secrets.toml"
    path.write_text(text.format(json.dumps(url)), "utf-8")
    path.chmod(0o600)
    for arguments in (["check-config"], ["check-config", "--json"], ["explain", "192.0.2.1", url]):
        heard = said("--config", str(path), *arguments)
        assert not [piece for piece in PIECES if piece in heard and "redis" in url.lower()], heard


@pytest.mark.slow
@settings(max_examples=60)
@given(urls())
def test_commands_about_state_tell_no_password(url: str) -> None:
    for arguments in (["greylist", "copy", url], ["greylist", "copy", "memory:", "x", url]):
        heard = said(*arguments)
        assert not [piece for piece in PIECES if piece in heard and "redis" in url.lower()], heard


@given(urls())
def test_no_mistake_in_a_url_quotes_it(url: str) -> None:
    said = ""
    try:
        parse_redis_url(url)
    except UrlMistake as mistake:
        said = str(mistake)
    assert not [piece for piece in PIECES if piece in said]


def test_the_configuration_s_representation_has_no_password() -> None:
    assert "hunter" not in repr(StoreSection(url="redis://u:hunter@h/0"))


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("'redis://u:a/b@h/0' is not a duration", "'redis:…' is not a duration"),
        ("https://u:pw@h/x and a@b", "https://h/x and a@b"),
        ("password=abc&db=0", "password=(hidden)&db=0"),
        ("a@b.example is not a host", "a@b.example is not a host"),
        ("allowed are redis://HOST:PORT/DB", "allowed are redis://HOST:PORT/DB"),
    ],
)
def test_passwords_are_cut_out_of_any_sentence(text: str, shown: str) -> None:
    assert shown == hide_passwords(text)


@pytest.mark.parametrize(
    ("text", "secret"),
    [
        ('url = "redis://u:p@h/0"', True),
        ('url = "redis://h/0"', False),
        ('# url = "redis://u:p@h/0"', False),
        ('lists = ["abcd1234efgh5678ijkl90mnop.zen.dq.spamhaus.net"]', True),
        ('key = "-----BEGIN PRIVATE KEY-----"', True),
        ("", False),
    ],
)
def test_a_configuration_holds_a_secret_or_not(text: str, secret: bool) -> None:
    assert secret == holds_secret(text)


@pytest.mark.parametrize(
    ("mode", "url", "command"),
    [
        (0o644, "redis://u:p@h/0", "chmod o-r "),
        (0o640, "redis://u:p@h/0", ""),
        (0o600, "redis://u:p@h/0", ""),
        (0o644, "redis://h/0", ""),
    ],
)
def test_a_password_that_everybody_may_read_is_warned_of(tmp_path: Path, mode: int, url: str, command: str) -> None:
    file = tmp_path / "gatekeeper.toml"
    file.write_text(f'[store]\nurl = "{url}"\n')
    file.chmod(mode)
    heard = said("--config", str(file), "check-config")
    assert bool(command) == ("may read it" in heard), heard
    assert f"{command}{file}" in heard or not command


@pytest.mark.skipif(os.geteuid() != 0, reason="only root gives a file to another group")
def test_a_password_that_a_strange_group_may_read_is_warned_of(tmp_path: Path) -> None:
    file = tmp_path / "gatekeeper.toml"
    file.write_text('[store]\nurl = "redis://u:p@h/0"\n')
    file.chmod(0o640)
    os.chown(file, 0, 4)
    assert f"chmod g-r {file}" in said("--config", str(file), "check-config")
    assert config_file.load(file).file == file


def test_a_store_to_copy_to_is_read_from_standard_input(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sys.stdin", io.StringIO("redis://u:hunter/zwei2x@h/0\n"))
    heard = said("greylist", "copy", "--from", "memory:", "-")
    assert "percent-encoded" in heard
    assert "hunter" not in heard
