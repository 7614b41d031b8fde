# SPDX-License-Identifier: GPL-3.0-or-later
"""Limits that somebody keeps in smtpd_data_restrictions: check-config says that nothing counts there by default."""

from collections.abc import Mapping, Sequence
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gatekeeper import cli
from gatekeeper.config import config_file
from gatekeeper.config.asked_stages import asked_in_vain
from gatekeeper.postfix.postconf import ask_postfix
from tests.support.postconf import no_postfix

ON_TCP = 'listen = "inet:127.0.0.1:10040"\n'
ON_UNIX = 'listen = "unix:/var/spool/postfix/gatekeeper/policy.sock"\n'
TCP, UNIX = (
    "check_policy_service inet:127.0.0.1:10040",
    "check_policy_service { unix:gatekeeper/policy.sock, timeout=30s }",
)


def warned(folder: Path, policy: str, **main_cf: str) -> list[str]:
    def ask(names: Sequence[str]) -> Mapping[str, str]:
        return {name: value for name, value in main_cf.items() if name in names}

    (folder / "gatekeeper.toml").write_text(f"[policy]\n{policy}")
    config = config_file.load(folder / "gatekeeper.toml", no_postfix)
    return [
        problem.what.partition(" asks here")[0].removeprefix("Postfix's ") for problem in asked_in_vain(config, ask)
    ]


@pytest.mark.parametrize(
    ("policy", "service"),
    [
        (ON_TCP, TCP),
        (ON_TCP, "reject_unauth_pipelining, check_policy_service inet:localhost:10040, permit"),
        (ON_TCP, "check_policy_service { inet:[::1]:10040, default_action=DUNNO }"),
        (ON_UNIX, UNIX),
        (ON_UNIX, "check_policy_service unix:/var/spool/postfix/gatekeeper/policy.sock"),
        (f"{ON_TCP}end_of_data_restrictions = 'ratelimit'\n", TCP),
    ],
)
def test_a_list_that_is_empty_where_postfix_asks_is_warned_of(tmp_path: Path, policy: str, service: str) -> None:
    assert ["smtpd_data_restrictions"] == warned(tmp_path, policy, smtpd_data_restrictions=service)


@pytest.mark.parametrize(
    ("policy", "service"),
    [
        (ON_TCP, ""),
        (ON_TCP, "reject_multi_recipient_bounce"),
        (ON_TCP, "check_policy_service inet:127.0.0.1:10031"),
        (ON_TCP, UNIX),
        (ON_UNIX, TCP),
        (ON_UNIX, "check_policy_service unix:private/policy"),
        (f"{ON_TCP}data_restrictions = 'ratelimit'\n", TCP),
        (f"{ON_TCP}[policy.contexts.submission]\ndata_restrictions = 'ratelimit'\n", TCP),
    ],
)
def test_another_daemon_or_a_list_that_is_there_is_none(tmp_path: Path, policy: str, service: str) -> None:
    assert [] == warned(tmp_path, policy, smtpd_data_restrictions=service)


@given(st.text())
def test_any_value_of_main_cf_can_be_asked(value: str) -> None:
    config = config_file.defaults(no_postfix)
    list(asked_in_vain(config, lambda names: dict.fromkeys(names, value)))


def test_check_config_tells_it_of_the_postfix_of_this_machine(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "main.cf").write_text(
        "compatibility_level = 3.6\nlimits = inet:127.0.0.1:10040\n"
        "smtpd_end_of_data_restrictions = check_policy_service $limits\n"
    )
    monkeypatch.setenv("MAIL_CONFIG", str(tmp_path))
    if "smtpd_end_of_data_restrictions" not in ask_postfix(["smtpd_end_of_data_restrictions"]):
        pytest.skip("there is no Postfix here")
    (tmp_path / "gatekeeper.toml").write_text(f'hostname = "mx.example.org"\n[policy]\n{ON_TCP}')
    assert 0 == cli.main(["check-config", "--config", str(tmp_path / "gatekeeper.toml")])
    assert "Postfix's smtpd_end_of_data_restrictions asks here, but" in capsys.readouterr().out
