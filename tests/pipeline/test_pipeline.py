# SPDX-License-Identifier: GPL-3.0-or-later
"""The lattice, one sentence at a time, on checks that say what they are told to say."""

import asyncio
from dataclasses import dataclass, field, replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gatekeeper.core.request import Client, Request, Stage, parse_address
from gatekeeper.core.verdict import (
    PASS,
    Decision,
    Mode,
    Outcome,
    Verdict,
    defer_if_permit,
    defer_if_reject,
    permit,
    reject,
)
from gatekeeper.dnsclient.resolver import TableResolver
from gatekeeper.dnsclient.zone import Zone
from gatekeeper.pipeline.check import Check
from gatekeeper.pipeline.context import Context
from gatekeeper.pipeline.facts import Facts
from gatekeeper.pipeline.pipeline import CLIENT, DATA, END_OF_DATA, HELO, LISTS, RECIPIENT, SENDER, CutOff, Pipeline
from gatekeeper.pipeline.site import Site
from gatekeeper.stores.memory import MemoryStore
from gatekeeper.stores.store import Keys

PERMIT = permit("ok")
ACCEPT = Verdict(Outcome.ACCEPT, "accept")
REJECT = reject("bad", "554", "5.7.1", "no")
REJECT_4XX = reject("unsure", "450", "4.1.8", "not now")
IF_PERMIT = defer_if_permit("soft", "4.7.1", "come back")
IF_REJECT = defer_if_reject("maybe", "4.7.1", "would know more later")
HOLD = Verdict(Outcome.ACTION, "access.hold", text="HOLD")
DISCARD = Verdict(Outcome.ACTION, "access.discard", text="DISCARD")
RCPT = Request(
    stage=Stage.RCPT, client=Client(address=parse_address("192.0.2.1")), helo="h", sender="", recipient="r@e"
)


@dataclass(slots=True)
class Says:
    """A check with one answer, which counts how often it was asked."""

    verdict: Verdict
    name: str = "says"
    mode: Mode = Mode.ENFORCE
    needs: tuple[str, ...] = ()
    asked: int = 0
    keys: list[str] = field(default_factory=list)

    async def check(self, request: Request, context: Context) -> Verdict:
        self.asked += 1
        self.keys.append(context.keys("kind", "part"))
        return self.verdict


class Crashes(Says):
    async def check(self, request: Request, context: Context) -> Verdict:
        context.note("looked", "at something")
        raise RuntimeError("a bug")


class Waits(Says):
    async def check(self, request: Request, context: Context) -> Verdict:
        await asyncio.Event().wait()
        return self.verdict


class LosesItsTask(Says):
    async def check(self, request: Request, context: Context) -> Verdict:
        task = asyncio.ensure_future(asyncio.Event().wait())
        asyncio.get_running_loop().call_soon(task.cancel)
        await task
        return self.verdict


def world() -> Context:
    resolver = TableResolver(Zone.parse(""))
    return Context.of(
        site=Site(hostname="mx.example.com", authserv_id="mx.example.com"),
        resolver=resolver,
        store=MemoryStore(lambda: 0.0),
        clock=lambda: 0.0,
        keys=Keys(b"secret"),
        facts=Facts(resolver, client=RCPT.client, helo="h", sender="", receiver="mx.example.com"),
    )


async def decide(lists: dict[str, list[Verdict]], request: Request = RCPT, observe: bool = False) -> Decision:
    checks = {name: tuple(Says(verdict) for verdict in verdicts) for name, verdicts in lists.items()}
    return await Pipeline(checks, observe).decide(request, world())


async def answer(*verdicts: Verdict) -> Verdict:
    return (await decide({RECIPIENT: list(verdicts)})).verdict


async def test_no_opinion_is_dunno() -> None:
    assert PASS == await answer(PASS, PASS)


async def test_a_permit_ends_its_list_and_answers_dunno() -> None:
    assert PASS == await answer(PERMIT, REJECT)


async def test_a_permit_does_not_end_the_lists_that_follow() -> None:
    assert REJECT == (await decide({CLIENT: [PERMIT, IF_PERMIT], RECIPIENT: [REJECT]})).verdict


async def test_a_reject_ends_all_lists() -> None:
    decision = await decide({HELO: [REJECT], RECIPIENT: [REJECT_4XX]})
    assert (REJECT, 1) == (decision.verdict, len(decision.steps))


async def test_accept_ends_everything_and_says_so() -> None:
    assert ACCEPT == (await decide({CLIENT: [ACCEPT], RECIPIENT: [REJECT]})).verdict


async def test_a_kept_defer_outlives_an_accept() -> None:
    assert IF_PERMIT == await answer(IF_PERMIT, ACCEPT)


async def test_a_soft_failure_is_answered_at_the_end() -> None:
    assert IF_PERMIT == await answer(PASS, IF_PERMIT, PASS)


async def test_a_soft_failure_outlives_a_permit() -> None:
    assert IF_PERMIT == await answer(IF_PERMIT, PERMIT)


async def test_a_later_5xx_wins_over_a_soft_failure() -> None:
    assert REJECT == await answer(IF_PERMIT, REJECT)


async def test_of_two_soft_failures_the_first_is_answered() -> None:
    assert IF_PERMIT == await answer(IF_PERMIT, replace(IF_PERMIT, reason="second"))


async def test_a_soft_failure_of_an_early_list_is_kept_to_the_end() -> None:
    assert IF_PERMIT == (await decide({CLIENT: [IF_PERMIT], RECIPIENT: [PERMIT]})).verdict


async def test_a_kept_defer_if_reject_turns_a_later_5xx_into_its_4xx() -> None:
    refused = replace(IF_REJECT, outcome=Outcome.REJECT)  # DEFER_IF_REJECT would let Postfix go on
    assert refused == await answer(IF_REJECT, REJECT)


async def test_a_kept_defer_if_reject_leaves_a_later_4xx_alone() -> None:
    assert REJECT_4XX == await answer(IF_REJECT, REJECT_4XX)


async def test_a_defer_if_reject_is_forgotten_at_the_next_list() -> None:
    assert REJECT == (await decide({CLIENT: [IF_REJECT], RECIPIENT: [REJECT]})).verdict


async def test_a_defer_if_reject_that_met_no_reject_is_passed_on() -> None:
    assert IF_REJECT == await answer(IF_REJECT, PASS)


async def test_both_soft_failures_together_end_their_list() -> None:
    decision = await decide({RECIPIENT: [IF_REJECT, IF_PERMIT, REJECT]})
    assert (IF_PERMIT, 2) == (decision.verdict, len(decision.steps))


async def test_an_action_is_answered_if_nothing_refuses() -> None:
    assert HOLD == await answer(HOLD, PASS)
    assert HOLD == await answer(HOLD, PERMIT)
    assert REJECT == await answer(HOLD, REJECT)
    assert IF_PERMIT == await answer(HOLD, IF_PERMIT)


async def test_discard_ends_everything() -> None:
    assert DISCARD == (await decide({CLIENT: [DISCARD], RECIPIENT: [REJECT]})).verdict


async def test_lists_run_in_postfix_order_whatever_order_they_are_written_in() -> None:
    decision = await decide({name: [PASS] for name in reversed(LISTS)})
    assert [CLIENT, HELO, SENDER, RECIPIENT] == [step.list for step in decision.steps]


@pytest.mark.parametrize(("stage", "name"), [(Stage.DATA, DATA), (Stage.END_OF_MESSAGE, END_OF_DATA)])
async def test_the_late_lists_run_at_their_stage_alone(stage: Stage, name: str) -> None:
    decision = await decide({name: [PASS] for name in LISTS}, RCPT._replace(stage=stage))
    assert [name] == [step.list for step in decision.steps]


async def test_a_check_abstains_while_its_attribute_does_not_exist() -> None:
    check = Says(REJECT, needs=("recipient",))
    decision = await Pipeline({RECIPIENT: (check,)}).decide(RCPT._replace(stage=Stage.MAIL, recipient=None), world())
    assert (0, (), PASS) == (check.asked, decision.steps, decision.verdict)


async def test_an_empty_attribute_exists() -> None:
    check = Says(REJECT, needs=("sender",))
    assert REJECT == (await Pipeline({SENDER: (check,)}).decide(RCPT, world())).verdict


async def test_a_check_that_is_off_is_not_asked() -> None:
    check = Says(REJECT, mode=Mode.OFF)
    assert () == (await Pipeline({CLIENT: (check,)}).decide(RCPT, world())).steps
    assert 0 == check.asked


async def test_an_observed_check_is_written_down_and_does_not_count() -> None:
    decision = await Pipeline({CLIENT: (Says(REJECT, mode=Mode.OBSERVE),)}).decide(RCPT, world())
    assert (PASS, REJECT) == (decision.verdict, decision.judged)
    assert [(REJECT, False)] == [(step.verdict, step.applied) for step in decision.steps]
    assert ("bad",) == decision.reasons == decision.observed


VERDICTS = st.sampled_from([PASS, PERMIT, ACCEPT, REJECT, REJECT_4XX, IF_PERMIT, IF_REJECT, HOLD, DISCARD])


@given(st.fixed_dictionaries({RECIPIENT: st.lists(st.tuples(VERDICTS, st.booleans()), max_size=5)}))
def test_what_is_judged_is_what_the_same_lists_answer_when_all_of_them_counts(
    lists: dict[str, list[tuple[Verdict, bool]]],
) -> None:
    async def answers() -> None:
        decided = [
            await Pipeline(
                {
                    name: tuple(
                        Says(verdict, mode=Mode.OBSERVE if observed and observing else Mode.ENFORCE)
                        for verdict, observed in checks
                        if not (observed and without)
                    )
                    for name, checks in lists.items()
                }
            ).decide(RCPT, world())
            for observing, without in ((True, False), (False, False), (False, True))
        ]
        partly, all_count, without_observed = decided
        assert all_count.verdict == all_count.judged == partly.judged
        assert without_observed.verdict == partly.verdict

    asyncio.run(answers())


async def test_what_is_observed_ends_its_own_list_only() -> None:
    lists: dict[str, tuple[Check, ...]] = {
        CLIENT: (Says(PERMIT, mode=Mode.OBSERVE), Says(IF_PERMIT)),
        HELO: (Says(REJECT),),
    }
    decision = await Pipeline(lists).decide(RCPT, world())
    assert (REJECT, REJECT) == (decision.verdict, decision.judged)


async def test_an_observed_check_has_state_of_its_own() -> None:
    observed, enforced = Says(PASS, mode=Mode.OBSERVE), Says(PASS)
    await Pipeline({CLIENT: (observed, enforced)}).decide(RCPT, world())
    assert observed.keys == [f"observe:{key}" for key in enforced.keys]


async def test_an_observing_pipeline_answers_dunno_and_knows_better() -> None:
    decision = await decide({CLIENT: [REJECT]}, observe=True)
    assert (PASS, REJECT) == (decision.verdict, decision.judged)
    assert [False] == [step.applied for step in decision.steps]
    assert ("bad",) == decision.observed


async def test_a_check_that_crashes_abstains_and_says_so(caplog: pytest.LogCaptureFixture) -> None:
    lists: dict[str, tuple[Check, ...]] = {CLIENT: (Crashes(PASS, name="buggy"), Says(REJECT))}
    decision = await Pipeline(lists).decide(RCPT, world())
    assert (REJECT, ("buggy.error", "bad")) == (decision.verdict, decision.reasons)
    assert ["looked", "internal error"] == [note.what for note in decision.steps[0].notes]
    assert "buggy" in caplog.text


async def test_side_effects_run_once_and_one_that_fails_stops_no_other() -> None:
    context, seen = world(), []

    async def fails(decision: Decision) -> None:
        raise RuntimeError

    async def works(decision: Decision) -> None:
        seen.append(decision)

    context.after(fails)
    context.after(works)
    decision = await Pipeline({}).decide(RCPT, context)
    await context.settle(decision)
    await context.settle(decision)
    assert [decision] == seen


REFUSALS = st.sampled_from([PASS, PERMIT, REJECT, REJECT_4XX, IF_PERMIT, IF_REJECT, HOLD])


@given(st.dictionaries(st.sampled_from([CLIENT, HELO, SENDER, RECIPIENT]), st.lists(REFUSALS, max_size=5)))
async def test_nothing_that_is_refused_anywhere_is_let_through(lists: dict[str, list[Verdict]]) -> None:
    decision = await decide(lists)
    applied = [step.verdict for step in decision.steps]
    refused = any(verdict.refuses for verdict in applied)
    assert refused == decision.verdict.refuses or (refused and decision.verdict == IF_REJECT)


async def test_postfix_takes_a_bare_postmaster_unasked() -> None:
    decision = await decide({RECIPIENT: [REJECT]}, RCPT._replace(recipient="Postmaster"))
    assert PASS == decision.verdict


@pytest.mark.parametrize(
    ("kept", "expected"),
    [
        ([IF_PERMIT], IF_PERMIT),
        ([IF_REJECT], IF_REJECT),
        ([HOLD], HOLD),
        ([HOLD, IF_PERMIT], IF_PERMIT),
        ([], PASS),
    ],
)
async def test_a_decision_that_is_cut_off_tells_what_was_kept(kept: list[Verdict], expected: Verdict) -> None:
    pipeline = Pipeline({SENDER: tuple(map(Says, kept)), RECIPIENT: (Waits(REJECT, "waits"),)})
    if expected is IF_REJECT:  # kept for its own list
        pipeline = Pipeline({RECIPIENT: (*map(Says, kept), Waits(REJECT, "waits"))})
    deciding = asyncio.ensure_future(pipeline.decide(RCPT, world()))
    await asyncio.sleep(0)
    deciding.cancel()
    with pytest.raises(CutOff) as cut:
        await deciding
    assert expected == cut.value.decision.verdict
    assert "waits.cut_off" == cut.value.decision.reasons[-1]


@pytest.mark.parametrize("mode", [Mode.ENFORCE, Mode.OBSERVE])
async def test_a_check_whose_own_task_is_cancelled_crashes_and_the_others_decide(mode: Mode) -> None:
    pipeline = Pipeline({RECIPIENT: (Says(IF_PERMIT), LosesItsTask(REJECT, "loses", mode), Says(PASS))})
    decision = await pipeline.decide(RCPT, world())
    assert IF_PERMIT == decision.verdict
    assert "loses.error" in decision.reasons
