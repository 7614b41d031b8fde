# SPDX-License-Identifier: GPL-3.0-or-later
"""Tables of patterns, first match wins: `cidr:`, `regexp:`, `pcre:` (cidr_table(5), regexp_table(5), pcre_table(5)).

Patterns apply to the whole string that is looked up, never to parts of it. `!pattern`, `if` and `endif` work in all
three, `$1` in the texts of regexp and pcre. A cidr: table without conditions is indexed: a lookup among a million
networks takes no longer than among ten.
"""

import logging
import re
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field, replace
from ipaddress import IPv4Network, IPv6Network

from gatekeeper.checks.base.check_types import SourceLine
from gatekeeper.checks.tables.action import TableAction, with_text
from gatekeeper.checks.tables.indexed import Networks
from gatekeeper.checks.tables.pcre2 import MatchLimitReached, PcrePattern
from gatekeeper.checks.tables.regex import MAX_SUBJECT, compile_perl, compile_posix, is_risky
from gatekeeper.checks.tables.table import Actions, text_lines
from gatekeeper.core.request import Address, parse_address
from gatekeeper.core.units import parse_network, unmap_network

logger = logging.getLogger(__name__)

Groups = tuple[bytes, ...] | None
"""The groups of a match; None if nothing matched."""
Matcher = Callable[[str], Groups]

_SUBSTITUTE = re.compile(r"\$(?:(\$)|(\d{1,2})|\{(\d{1,2})\}|\((\d{1,2})\))", re.ASCII)
_SEPARATOR = re.compile(r"[ \t\r\n,]")
"""What stands between two words of a list (Postfix's CHARS_COMMA_SP); other white space may be part of a login."""
_CONTROL = re.compile(r"[\x00-\x1f\x7f]")
_KEYWORD = re.compile(r"(if|endif)(?:\s+|$)", re.IGNORECASE)
_CONDITION = re.compile(rb"^(?:!|if\s|endif\b)", re.IGNORECASE | re.MULTILINE)


@dataclass(slots=True)
class PatternRule:
    """One rule: a pattern with an action or, without one, an `if`; `skip_to` is the index of the rule after its end.

    `values` says that the action is a list of words (table.Actions).
    """

    matches: Matcher
    negated: bool
    action: TableAction | None = None
    substitutes: bool = False
    values: bool = False
    skip_to: int = 0


class NoAddress(Exception):
    """A network cannot be compared with a name or an address of the other IP version (cidr_match_execute())."""


@dataclass(slots=True)
class RuleTable:
    """A table of rules, tried in order."""

    rules: list[PatternRule] = field(default_factory=list)
    allows: list[SourceLine] = field(default_factory=list)

    @property
    def asks_spf(self) -> bool:
        """Whether a rule may ask for SPF of the sender."""
        return any(rule.action is not None and rule.action.asks_spf for rule in self.rules)

    def search(self, keys: Iterable[str]) -> TableAction | None:
        """Return the action of the first rule that matches the first of `keys`."""
        key = next(iter(keys), "")
        if not key:
            return None
        at = 0
        while at < len(self.rules):
            rule = self.rules[at]
            at += 1
            try:
                groups = rule.matches(key)
                applies = (groups is not None) is not rule.negated
            except (MatchLimitReached, NoAddress):
                applies = False  # whether negated or not, as in Postfix
            if not applies:
                at = rule.skip_to if rule.action is None else at
            elif rule.action is not None:
                return _substitute(rule, rule.action, groups) if rule.substitutes else rule.action
        return None

    def search_address(self, address: Address) -> TableAction | None:
        """Return the action of the first rule that matches the address as text."""
        return self.search([str(address)])


@dataclass(slots=True)
class NetworkTable:
    """A cidr: table without conditions."""

    networks: Networks
    actions: Actions

    @property
    def allows(self) -> list[SourceLine]:
        """The lines of entries that say OK without a condition."""
        return self.actions.allows

    @property
    def asks_spf(self) -> bool:
        """Whether an entry may ask for SPF of the sender."""
        return self.actions.asks_spf

    def search(self, keys: Iterable[str]) -> TableAction | None:
        """Return the entry for the first key, if that is an address."""
        address = parse_address(next(iter(keys), ""))
        return None if address is None else self.networks.first(address)

    def search_address(self, address: Address) -> TableAction | None:
        """Return the first entry whose network contains `address`."""
        return self.networks.first(address)


def _substitute(rule: PatternRule, action: TableAction, groups: Groups) -> TableAction:
    """Return `action` with the groups of the match in its text: a stranger's text, which stays one word of a list.

    It is a value, so nothing else in it is changed: what it looks like is for whoever prints it. A NUL, which no login
    and no mailbox has, stands for what must not be in it: a separator in a list, a control character in an action.
    """
    found = [group.decode("utf-8", "surrogateescape") for group in groups or ()]

    def replacement(match: re.Match[str]) -> str:
        if match[1]:
            return "$"
        number = int(match[2] or match[3] or match[4])
        text = found[number - 1] if 0 < number <= len(found) else ""
        return (_SEPARATOR if rule.values else _CONTROL).sub("\0", text)

    text = _SUBSTITUTE.sub(replacement, action.verdict.text)
    return replace(action, verdict=replace(action.verdict, text=text)) if rule.values else with_text(action, text)


def parse_cidr(data: bytes, actions: Actions) -> NetworkTable | RuleTable:
    """Parse a cidr: table."""
    if _CONDITION.search(data):
        return _parse_rules(data, actions, _parse_network_rule)
    table = NetworkTable(Networks(data.count(b"\n") + 1, actions), actions)
    for line, content in text_lines(data):
        pattern, rest = _cut(content)
        if not rest:
            actions.skip(line, f"{pattern!r} has no action; allowed: NETWORK ACTION")
        elif table.networks.add_plain(pattern, rest):
            actions.check(line, rest)
        elif (network := _network(line, pattern, rest, actions)) is not None:
            table.networks.add(network, rest)
            actions.check(line, rest)
        if actions.doubted:
            table.networks.doubt_what_follows()
            if rest:
                actions.trusted(actions.parsed(rest))
    return table


def parse_regexp(data: bytes, actions: Actions) -> RuleTable:
    """Parse a regexp: table."""
    return _parse_rules(data, actions, lambda line, source, actions: _parse_regex(line, source, actions, compile_posix))


def parse_pcre(data: bytes, actions: Actions) -> RuleTable:
    """Parse a pcre: table."""
    return _parse_rules(data, actions, lambda line, source, actions: _parse_regex(line, source, actions, compile_perl))


_PatternParser = Callable[[int, str, Actions], tuple[Matcher, str, int] | None]
"""Parses the pattern that a line begins with: returns its matcher, the rest of the line, and its number of groups."""


def _parse_rules(data: bytes, actions: Actions, parse_pattern: _PatternParser) -> RuleTable:
    table = RuleTable(allows=actions.allows)
    open_ifs: list[tuple[int, PatternRule]] = []
    for line, content in text_lines(data):
        keyword = match[1].lower() if (match := _KEYWORD.match(content)) else ""
        if keyword == "endif":
            if not open_ifs:
                actions.mistake(line, "endif without if is ignored", warning=not actions.strict)
            else:
                open_ifs.pop()[1].skip_to = len(table.rules)
            continue
        source = content[match.end() :] if match else content
        pattern = source.lstrip("! \t")
        negated = source[: len(source) - len(pattern)].count("!") % 2 == 1
        parsed = parse_pattern(line, pattern, actions)
        if parsed is None:
            if keyword:  # what stands in it is meant for some only
                open_ifs.append((line, PatternRule(_never, negated)))
                table.rules.append(open_ifs[-1][1])
            continue
        matches, rest, groups = parsed
        rule = PatternRule(matches, negated)
        if keyword:
            if rest:
                actions.mistake(line, f"{rest!r} after the pattern of an if is ignored", warning=True)
            open_ifs.append((line, rule))
        elif not _parse_action(line, rest, 0 if negated else groups, rule, actions):
            continue
        table.rules.append(rule)
    for line, rule in open_ifs:
        actions.mistake(line, "if without endif", warning=not actions.strict)
        rule.skip_to = len(table.rules)
    return table


def _never(_key: str) -> Groups:
    raise NoAddress


def _parse_action(line: int, text: str, groups: int, rule: PatternRule, actions: Actions) -> bool:
    """Set the action of `rule`. Return False, and note a problem, if it is not valid."""
    if not text:
        actions.skip(line, "the pattern has no action; allowed: PATTERN ACTION, with white space between")
        return False
    broken = actions.broken
    action = actions.action(line, text)
    if action is None:
        return False
    if "$" in text and actions.broken == broken:
        if action.checks or not action.verdict.text:
            actions.skip(line, "a substitution ($1) is only allowed in the text of an action", text)
            return False
        numbers = [int(m[2] or m[3] or m[4]) for m in _SUBSTITUTE.finditer(text) if not m[1]]
        if "$" in _SUBSTITUTE.sub("", text) or any(not 0 < number <= groups for number in numbers):
            allowed = f"allowed: $1 to ${groups}" if groups else "the pattern has no groups to substitute"
            actions.skip(line, f"{text!r} has a substitution that cannot be made; {allowed}; $$ for a dollar", text)
            return False
        rule.substitutes, rule.values = True, actions.values
    rule.action = actions.trusted(action)
    return True


def _parse_regex(
    line: int, source: str, actions: Actions, compile: Callable[[str, str], PcrePattern]
) -> tuple[Matcher, str, int] | None:
    delimiter = source[:1]
    if not delimiter or delimiter.isalnum():
        actions.skip(line, f"{source[:40]!r} is not a pattern; allowed: /PATTERN/FLAGS ACTION, if /PATTERN/, endif")
        return None
    end = 1
    while end < len(source) and source[end] != delimiter:
        end += 2 if source[end] == "\\" else 1
    if end >= len(source):
        actions.skip(line, f"the pattern does not end; it needs a second {delimiter!r}")
        return None
    pattern = source[1:end]
    flags, rest = _cut(source[end + 1 :])
    if "!" in flags:
        what = "two patterns in one rule are not supported; write if /PATTERN/ ... endif around the other"
        actions.skip(line, what)
        return None
    try:
        compiled = compile(pattern, flags)
    except ValueError as error:
        actions.skip(line, f"/{pattern}/{flags} {error}", rest)
        return None
    if is_risky(pattern):
        cost = "on a hostile name it may reach the step limit and match nothing"
        what = f"/{pattern}/ has a repeat directly inside a repeat: {cost}"
        actions.mistake(line, what, warning=True)
    return _matcher(compiled, SourceLine(actions.file, line)), rest, compiled.groups


def _matcher(pattern: PcrePattern, place: SourceLine) -> Matcher:
    def matches(key: str) -> Groups:
        subject = key.encode("utf-8", "surrogateescape")
        if len(subject) > MAX_SUBJECT:
            return None
        try:
            return pattern.search(subject)
        except MatchLimitReached as error:
            logger.warning("%s:%d: pattern skipped, matching took too long: %s", place.file, place.line, error)
            raise

    return matches


def _parse_network_rule(line: int, source: str, actions: Actions) -> tuple[Matcher, str, int] | None:
    pattern, rest = _cut(source)
    network = _network(line, pattern, rest, actions)
    if network is None:
        return None

    def matches(key: str) -> Groups:
        address = parse_address(key)
        if address is None or address.version != network.version:
            raise NoAddress
        return () if address in network else None

    return matches, rest, 0


def _network(line: int, pattern: str, rest: str, actions: Actions) -> IPv4Network | IPv6Network | None:
    try:
        network = parse_network(pattern)
    except ValueError as error:
        actions.skip(line, str(error), rest)
        return None
    if (meant := unmap_network(network)) is not network:
        what = f"neither Postfix nor gatekeeper matches {pattern!r}: such clients have IPv4 addresses; write {meant}"
        actions.mistake(line, what, warning=True)
    return network


def _cut(text: str) -> tuple[str, str]:
    """Split `text` into its first word, which may be empty, and the rest."""
    head, *rest = re.split(r"\s+", text, maxsplit=1)
    return head, rest[0].strip() if rest else ""
