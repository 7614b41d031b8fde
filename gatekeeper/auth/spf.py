# SPDX-License-Identifier: GPL-3.0-or-later
"""SPF (RFC 7208): whether a client may send for a domain.

`spf_record` reads records and `spf_evaluation` evaluates them; both serve `gatekeeper spf check` too, which therefore
judges a record as it is judged here. A result that depends on no macro is cached with its answers, for the next message
from the same client and domain.

**A pass is not yet an identity.** It says that the domain lets the client send, and a domain may let anybody. Reports,
DMARC and Authentication-Results want the result as the RFCs define it; whoever takes the domain for the client's, or
for proof of the sender, asks `SpfFinding.authenticates`. That is so if the directive that let the client in, through
however many `include` and `redirect`, names it by its network: `ip4`, `ip6`, or the addresses of an `a` or `mx`. And
all networks of the records that were read up to there are together smaller than MAX_SPACE, so that it makes no
difference whether everybody is let in by `all`, by one large network or by many that lie side by side. Not by

- `all`;
- `exists`, which names nobody: with a wildcard in the DNS it is the same as `all`, whatever macros are in it, and a
  name server that sees the client's address in the name can say yes to anybody;
- any term or record whose name the client had a say in (macros of its address, name, HELO or sender), for that reason;
- `ptr`: the customers of a provider, of which RFC 7208 section 5.5 advises against anyway.

So large senders that list their clients by such macros do not authenticate by SPF here. They lose nothing but a
shortcut. Known limit: a domain whose DNS answers change from minute to minute can let in a few at a time.
"""

from dataclasses import dataclass, replace
from typing import Literal

from gatekeeper.auth.domains import normal_domain
from gatekeeper.auth.spf_evaluation import Evaluation, PermError, SpfResult, TempError
from gatekeeper.core.request import Address
from gatekeeper.core.verdict import printable
from gatekeeper.dnsclient.resolver import Answer, DNSError, Resolver, known_answer

__all__ = ["SpfFinding", "SpfResult", "check_helo", "check_mail_from"]

Identity = Literal["mailfrom", "helo"]


@dataclass(frozen=True, slots=True)
class SpfFinding:
    """The result for one identity.

    `domain` is the one that was checked, `reason` a sentence of ours, and `explanation` the domain's own words for a
    `fail` (empty if it has none): printable ASCII on one line. `mechanism` is the term of the domain's own record that
    matched (`ip4:192.0.2.0/24`, `include:…`), empty if none did. `authenticates`: it is a `pass` that identifies the
    client (see above).
    """

    result: SpfResult
    identity: Identity = "mailfrom"
    domain: str = ""
    explanation: str = ""
    reason: str = ""
    mechanism: str = ""
    authenticates: bool = False


async def check_mail_from(
    resolver: Resolver, *, address: Address | None, helo: str, sender: str, receiver: str
) -> SpfFinding:
    """Check the MAIL FROM identity; for the null sender that is `postmaster@helo` (RFC 7208 section 2.4).

    `receiver` is our host name, for the `%{r}` macro. A DNS error is `temperror`. Never raises.
    """
    if not sender:
        return await check_helo(resolver, address=address, helo=helo, receiver=receiver)
    local, _, domain = sender.rpartition("@")
    return await _check(resolver, "mailfrom", address, local or "postmaster", domain, helo, receiver)


async def check_helo(resolver: Resolver, *, address: Address | None, helo: str, receiver: str) -> SpfFinding:
    """Check the HELO identity (RFC 7208 section 2.3). A DNS error is `temperror`. Never raises."""
    return await _check(resolver, "helo", address, "postmaster", helo, helo, receiver)


async def _check(
    resolver: Resolver, identity: Identity, address: Address | None, local: str, domain: str, helo: str, receiver: str
) -> SpfFinding:
    name = normal_domain(domain.removesuffix("."))
    nothing = SpfFinding(SpfResult.NONE, identity, name)
    if address is None:
        return replace(nothing, reason="the client's address is not known")
    # RFC 7208 section 4.3: neither a literal, nor a name of one label, nor a malformed one has a policy
    if "." not in name or name.rpartition(".")[2].isdigit():
        return replace(
            nothing, reason=f"{printable(domain, 80) or 'the empty name'} is not a domain that could have an SPF record"
        )
    if cached := _cached_outcome(resolver, address, name):
        return SpfFinding(cached[0], identity, name, *cached[1:])
    evaluation = Evaluation(
        resolver, address=address, local=local, domain=name, helo=normal_domain(helo) or "unknown", receiver=receiver
    )
    outcome = await _outcome(evaluation)
    _cache_outcome(outcome, evaluation, address)
    return SpfFinding(outcome[0], identity, name, *outcome[1:])


async def _outcome(evaluation: Evaluation) -> "_Outcome":
    """Return the outcome of an evaluation, with what is to be said about it."""
    domain = evaluation.domain
    try:
        ending = await evaluation.run()
        if ending is None:
            return SpfResult.NONE, "", f"{domain} publishes no SPF record", "", False
        names_client = evaluation.names_client  # the explanation is not about it
        explanation = await evaluation.explanation(ending) if ending.result is SpfResult.FAIL and ending.exp else ""
    except TempError as error:
        return SpfResult.TEMPERROR, "", printable(str(error), 200), "", False
    except PermError as error:
        return SpfResult.PERMERROR, "", printable(str(error), 200), "", False
    mechanism, client = printable(ending.term, 200), evaluation.address
    reason = f"{domain} {_SAYS[ending.result]} {client} send: {mechanism}"
    if not mechanism:
        reason = f"nothing in the record of {domain} is about {client}"
    return ending.result, explanation, printable(reason, 200), mechanism, names_client


_SAYS = {
    SpfResult.PASS: "lets",
    SpfResult.FAIL: "does not let",
    SpfResult.SOFTFAIL: "would rather not let",
    SpfResult.NEUTRAL: "does not say whether to let",
}
_Outcome = tuple[SpfResult, str, str, str, bool]
_outcomes: dict[tuple[Address, str], tuple[_Outcome, dict[tuple[str, str], Answer | DNSError]]] = {}
_NO_OUTCOME: tuple[None, dict[tuple[str, str], Answer | DNSError]] = (None, {})
_MAX_OUTCOMES = 2048
_MAX_CACHED = 4096  # bytes of records that a cached outcome may keep in memory


def _cached_outcome(resolver: Resolver, address: Address, name: str) -> _Outcome | None:
    """Return the earlier outcome for this client and domain, if `resolver` still has all its answers in its cache."""
    outcome, answers = _outcomes.get((address, name), _NO_OUTCOME)
    for (queried, type), answer in answers.items():
        if known_answer(resolver, queried, type) is not answer:
            return None
    return outcome


def _cache_outcome(outcome: _Outcome, evaluation: Evaluation, address: Address) -> None:
    """Cache an outcome that depends on nothing but client, domain and DNS, and on no DNS error."""
    answers = [answer for answer in evaluation.answers.values() if isinstance(answer, Answer)]
    size = sum(len(text) for answer in answers for text in answer.records)
    failed = outcome[0] is SpfResult.TEMPERROR or len(answers) < len(evaluation.answers)
    if failed or evaluation.has_macros or size > _MAX_CACHED or outcome[0] is SpfResult.NONE:
        return
    if len(_outcomes) >= _MAX_OUTCOMES:
        _outcomes.clear()
    _outcomes[address, evaluation.domain] = outcome, evaluation.answers
