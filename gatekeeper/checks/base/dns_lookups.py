# SPDX-License-Identifier: GPL-3.0-or-later
"""The look-ups that Postfix's restrictions share: one question after another, first answer wins (dns_lookup(3))."""

from collections.abc import Sequence
from functools import partial

from gatekeeper.core.verdict import printable
from gatekeeper.dnsclient.names import to_name, to_text
from gatekeeper.dnsclient.resolver import MX, Answer, DNSError, known_answer
from gatekeeper.dnsclient.resolver import query_or_error as resolve
from gatekeeper.pipeline.context import Context
from gatekeeper.postfix.hostname_syntax import is_address, is_hostname


async def ask(context: Context, name: str, type: str) -> Answer | None:
    """The answer, noted; None if DNS did not give one."""
    answer = known_answer(context.resolver, name, type) or await resolve(context.resolver, name, type)
    if isinstance(answer, DNSError):
        context.note(_what(name, type), f"no answer: {str(answer) or answer.__class__.__name__}")
        return None
    context.note_later(partial(_told, name, type, answer))
    return answer


def _told(name: str, type: str, answer: Answer) -> tuple[str, str]:
    return _what(name, type), _found(answer)


def _what(name: str, type: str) -> str:
    return f"{type} {printable(name, 255)}"


def _found(answer: Answer) -> str:
    if answer.records:
        return ", ".join(_show(record) for record in answer.records[:8])
    return "no data" if answer.exists else "no such name"


async def exists(context: Context, name: str, types: Sequence[str]) -> bool | None:
    """Whether `name` has records of any of `types`, asked in this order; None if DNS trouble keeps it open.

    As in Postfix a failing question does not matter once another one is answered, and what is no host name (a bare
    address too) does not exist, unasked.
    """
    if not is_hostname(name):
        context.note(f"name {printable(name, 255)}", "is no host name")
        return False
    trouble = False
    for type in types:
        answer = await ask(context, name, type)
        if answer is None:
            trouble = True
        elif answer.records:
            return True
    return None if trouble else False


def a_label(domain: str) -> str:
    """`domain` as the DNS has it: lower case, U-labels as A-labels; as it is if it can never be in the DNS."""
    if domain.isascii():
        return domain.lower()
    name = to_name(domain)
    return domain if name is None else to_text(name)


def is_null_mx(answer: Answer) -> bool:
    """True if one of the records is the null MX (RFC 7505); one beside real ones still counts, as in Postfix."""
    return any(isinstance(record, MX) and not record.host for record in answer.records)


def servers_of(answer: Answer) -> tuple[str, ...]:
    """The names in MX or NS records that Postfix does not throw away as malformed (valid_rr_name()): an address in the
    place of a name may stay.
    """
    names = [record.host if isinstance(record, MX) else str(record) for record in answer.records]
    return tuple([name for name in names if is_hostname(name) or is_address(name)])


def _show(record: object) -> str:
    if isinstance(record, MX):
        return f"{record.preference} {printable(record.host, 255) or '.'}"
    return printable(record.decode("ascii", "replace") if isinstance(record, bytes) else str(record), 120)
