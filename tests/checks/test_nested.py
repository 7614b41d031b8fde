# SPDX-License-Identifier: GPL-3.0-or-later
"""Restriction classes and restrictions in table entries: as if they stood in the list, and no way round in a circle."""

from pathlib import Path

import pytest

from gatekeeper.app.app import open_app
from gatekeeper.app.plan import prepare
from gatekeeper.checks.base.check_types import SourceLine
from gatekeeper.checks.base.nested import RestrictionClass
from gatekeeper.checks.builder.builder import CheckBuilder
from gatekeeper.config import config_file
from gatekeeper.core.problem import ConfigError
from gatekeeper.core.verdict import Verdict
from gatekeeper.dnsclient.resolver import TableResolver
from gatekeeper.dnsclient.zone import Zone
from gatekeeper.pipeline.check import Check
from gatekeeper.postfix.restriction_list import parse_restrictions
from gatekeeper.stores.memory import MemoryStore
from tests.support.checking import World, rcpt

HERE = Path("/nonexistent")
SOFT_THEN_OK = "check_sender_access inline:{ { example.net = defer_if_permit, permit } }"


def reader(**classes: str) -> CheckBuilder:
    place = SourceLine("gatekeeper.toml", 3)
    return CheckBuilder(
        {},
        HERE,
        classes={name: [(one.words, place) for one in parse_restrictions(text)] for name, text in classes.items()},
    )


def problems(**classes: str) -> list[str]:
    found = reader(**classes)
    found.check_classes()
    return [str(problem) for problem in found.problems]


async def verdict(restrictions: str) -> Verdict:
    return await World(restrictions).verdict(rcpt())


async def test_what_is_kept_inside_outlives_a_permit_inside_and_outside() -> None:
    assert "450 4.7.0" == (await verdict(f"{SOFT_THEN_OK}, reject")).reply[:9]


async def test_both_kinds_of_soft_failure_come_out() -> None:
    words = "check_sender_access inline:{ { example.net = defer_if_reject, defer_if_permit } }, reject"
    decision = await World(words).decide(rcpt())
    assert "defer_if_permit requested" == decision.verdict.text
    assert ("defer_if_reject", "defer_if_permit") == decision.reasons


async def test_a_kept_defer_if_reject_tempers_what_follows_in_the_list() -> None:
    words = "check_sender_access inline:{ example.net=defer_if_reject }, reject"  # here an action of access(5)
    assert "450 4.7.1" == (await verdict(words)).reply[:9]


async def test_the_explanation_names_the_restrictions_inside() -> None:
    decision = await World(f"{SOFT_THEN_OK}, reject").decide(rcpt())
    [step] = decision.steps
    assert ["within: defer_if_permit", "within: permit"] == [note.what for note in step.notes][:2]


async def test_warn_if_reject_goes_on_inside() -> None:
    words = "warn_if_reject check_sender_access inline:{ { example.net = reject, permit } }, reject"
    assert "" == (await verdict(words)).reply


def test_a_class_is_a_check() -> None:
    check = reader(strict="reject_non_fqdn_sender, permit").check(["strict"], SourceLine("x"))
    assert isinstance(check, RestrictionClass)
    assert isinstance(check, Check)
    assert ("strict", 2) == (check.name, len(check.checks))


def test_a_class_may_be_named_by_a_table_entry() -> None:
    found = reader(strict="reject_non_fqdn_sender")
    assert found.check(["check_sender_access", "inline:{ a=strict }"], SourceLine("x")) is not None
    assert [] == found.problems


@pytest.mark.parametrize(
    ("classes", "circle"),
    [
        ({"a": "a"}, "a -> a"),
        ({"a": "permit, b", "b": "warn_if_reject a"}, "a -> b -> a"),
        ({"a": "check_helo_access inline:{ x=a }"}, "a -> a"),
    ],
)
def test_a_class_that_asks_itself_is_refused(classes: dict[str, str], circle: str) -> None:
    assert any(what.endswith(f"contains itself: {circle}") for what in problems(**classes))


@pytest.mark.slow
def test_classes_have_a_depth_and_repeated_prefixes_take_no_time() -> None:
    chain = {f"c{number}": f"c{number + 1}" for number in range(3000)} | {"c3000": "reject"}
    assert any("nested more than 50 deep" in what for what in problems(**chain))
    assert [] == problems(a="warn_if_reject " * 100_000 + "reject")


def test_mistakes_in_a_class_that_nobody_asks_are_found() -> None:
    assert ["gatekeeper.toml:3: unknown restriction 'permitt'; did you mean 'permit'?"] == problems(a="permitt")


def test_a_class_cannot_be_called_like_a_restriction() -> None:
    what = "'Reject' is already a restriction; give the class another name"
    assert [f"gatekeeper.toml:3: {what}"] == problems(Reject="permit")


def test_a_misspelt_class_is_answered_with_the_nearest() -> None:
    found = reader(strict_helo="permit")
    found.check(["strict_hello"], SourceLine("x"))
    assert ["x: unknown restriction 'strict_hello'; did you mean 'strict_helo'?"] == [str(p) for p in found.problems]


CONFIG = """\
hostname = "mx.example.org"
[policy]
restrictions = "check_sender_access inline:{ a.example=strict }, reject"
classes = { strict = ["reject_non_fqdn_helo_hostname", "permit"] }
[policy.contexts.other]
sender_restrictions = '''
    inline:{ a.example=OK },
    strict'''
"""


async def test_classes_are_configured_and_work_in_every_context(tmp_path: Path) -> None:
    (tmp_path / "gatekeeper.toml").write_text(CONFIG)
    plan = prepare(config_file.load(tmp_path / "gatekeeper.toml", lambda names: {}))
    app = await open_app(plan, resolver=TableResolver(Zone.parse("")), store=MemoryStore())
    said = {
        sender: (await app.decide(rcpt(helo="localhost", sender=sender)))[0].verdict.code
        for sender in ("u@a.example", "u@b.example")
    }
    assert {"u@a.example": "504", "u@b.example": "554"} == said


def test_a_mistake_in_a_class_has_its_line(tmp_path: Path) -> None:
    path = tmp_path / "gatekeeper.toml"
    path.write_text(CONFIG.replace('"permit"]', '"permitt"]'))
    with pytest.raises(ConfigError) as wrong:
        prepare(config_file.load(path, lambda names: {}))
    assert f"{path}:4: unknown restriction 'permitt'; did you mean 'permit'?" in str(wrong.value)
