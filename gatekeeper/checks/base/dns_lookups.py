# SPDX-License-Identifier: GPL-3.0-or-later
"""The DNS lookups that Postfix's restrictions share: one query after another, first answer wins (dns_lookup(3))."""

from collections.abc import Sequence
from functools import partial

from gatekeeper.core.verdict import printable
from gatekeeper.dnsclient.names import to_name, to_text
from gatekeeper.dnsclient.resolver import MX, Answer, DNSError, known_answer
from gatekeeper.dnsclient.resolver import query_or_error as resolve
from gatekeeper.pipeline.context import Context
from gatekeeper.postfix.hostname_syntax import is_address, is_hostname


async def query_dns(context: Context, name: str, type: str) -> Answer | None:
    """Return the answer and note it; None if DNS did not give one."""
    answer = known_answer(context.resolver, name, type) or await resolve(context.resolver, name, type)
    if isinstance(answer, DNSError):
        context.note(_describe_query(name, type), f"no answer: {str(answer) or answer.__class__.__name__}")
        return None
    context.note_later(partial(_describe, name, type, answer))
    return answer


def _describe(name: str, type: str, answer: Answer) -> tuple[str, str]:
    return _describe_query(name, type), _describe_answer(answer)


def _describe_query(name: str, type: str) -> str:
    return f"{type} {printable(name, 255)}"


def _describe_answer(answer: Answer) -> str:
    if answer.records:
        return ", ".join(_describe_record(record) for record in answer.records[:8])
    return "no data" if answer.exists else "no such name"


async def exists(context: Context, name: str, types: Sequence[str]) -> bool | None:
    """Return whether `name` has records of any of `types`, queried in this order; None if DNS trouble hides it.

    As in Postfix a failing query does not matter once another one brings records, and anything that is not a host name
    (a bare address, for example) does not exist and is not looked up.
    """
    if not is_hostname(name):
        context.note(f"name {printable(name, 255)}", "is not a host name")
        return False
    trouble = False
    for type in types:
        answer = await query_dns(context, name, type)
        if answer is None:
            trouble = True
        elif answer.records:
            return True
    return None if trouble else False


def a_label(domain: str) -> str:
    """Return `domain` as the DNS has it: lower case, U-labels as A-labels; unchanged if it can never be in the DNS."""
    if domain.isascii():
        return domain.lower()
    name = to_name(domain)
    return domain if name is None else to_text(name)


def is_null_mx(answer: Answer) -> bool:
    """Return whether one of the records is the null MX (RFC 7505); as in Postfix, even beside real ones it counts."""
    return any(isinstance(record, MX) and not record.host for record in answer.records)


def server_names(answer: Answer) -> tuple[str, ...]:
    """Return the names in MX or NS records, without those that Postfix drops as malformed (valid_rr_name()).

    An address in place of a name is kept.
    """
    names = [record.host if isinstance(record, MX) else str(record) for record in answer.records]
    return tuple([name for name in names if is_hostname(name) or is_address(name)])


def _describe_record(record: object) -> str:
    if isinstance(record, MX):
        return f"{record.preference} {printable(record.host, 255) or '.'}"
    return printable(record.decode("ascii", "replace") if isinstance(record, bytes) else str(record), 120)
