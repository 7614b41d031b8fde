# SPDX-License-Identifier: GPL-3.0-or-later
r"""Postfix's regular expressions, regexp_table(5) and pcre_table(5), as PCRE2 patterns with a limit on time.

Perl's are handed over as they are. POSIX extended ones are spelled in Perl's way, or refused with the reason: a
backslash in brackets is itself, `\<` and `\>` are word ends, `{,n}` is `{0,n}`. Where Perl finds another match than
POSIX's longest, only `$1` could tell; whether anything matches is the same.
"""

import re

from gatekeeper.checks.tables.pcre2 import PcreMissing, PcreOption, PcrePattern

MAX_SUBJECT = 1000
"""Bytes: more than any host name or mailbox that SMTP allows (RFC 5321 section 4.5.3.1). Longer ones match nothing."""

_PERL_FLAGS = {
    "i": PcreOption.CASELESS,
    "m": PcreOption.MULTILINE,
    "s": PcreOption.DOTALL,
    "x": PcreOption.EXTENDED,
    "A": PcreOption.ANCHORED,
    "E": PcreOption.DOLLAR_ENDONLY,
    "U": PcreOption.UNGREEDY,
    "X": PcreOption(0),  # PCRE2 always does what it asked for
}
_POSIX_FLAGS = {"i": PcreOption.CASELESS, "m": PcreOption.MULTILINE, "x": PcreOption(0)}
_POSIX_ESCAPES = frozenset("wWsSbB123456789")
_NOTHING_BEFORE = re.compile(r"(?:^|[(|]|(?<!\\)\^)[*+?{]")
_NESTED_REPEAT = re.compile(r"(?:[*+]|\{\d+,\})\)(?:[*+]|\{\d+,\})")


def compile_posix(pattern: str, flags: str) -> PcrePattern:
    """A pattern of a regexp: table. `flags` toggle: i (on at first), m, x. Raises ValueError with the reason."""
    options = _toggle(PcreOption.CASELESS | PcreOption.DOTALL | PcreOption.DOLLAR_ENDONLY, flags, _POSIX_FLAGS)
    if flags.count("x") % 2:
        raise ValueError("basic regular expressions (flag x) are not supported; write an extended one")
    return _compile(_from_posix(pattern), options)


def compile_perl(pattern: str, flags: str) -> PcrePattern:
    """A pattern of a pcre: table. `flags` toggle: i and s (on at first), m, x, A, E, U, X. Raises ValueError."""
    return _compile(pattern, _toggle(PcreOption.CASELESS | PcreOption.DOTALL, flags, _PERL_FLAGS))


def is_risky(pattern: str) -> bool:
    """True if a repeat stands directly inside a repeat."""
    return _NESTED_REPEAT.search(pattern) is not None


def _toggle(start: PcreOption, flags: str, known: dict[str, PcreOption]) -> PcreOption:
    value = start
    for flag in flags:
        if flag not in known:
            raise ValueError(f"flag {flag!r} is not supported; allowed: {', '.join(known)}")
        value ^= known[flag]
    return value


def _compile(pattern: str, options: PcreOption) -> PcrePattern:
    try:
        return PcrePattern(pattern.encode("utf-8", "surrogateescape"), options)
    except PcreMissing as missing:
        raise ValueError(str(missing)) from None


def _from_posix(pattern: str) -> str:
    out: list[str] = []
    at = 0
    while at < len(pattern):
        char = pattern[at]
        if char == "[":
            text, at = _bracket(pattern, at)
            out.append(text)
        elif char == "\\":
            out.append(_posix_escape(pattern[at + 1 : at + 2]))
            at += 2
        elif char == "{":
            match = re.compile(r"\{(?:\d+(?:,\d*)?|,\d+)\}", re.ASCII).match(pattern, at)
            if match is None:
                raise ValueError(r"'{' begins no repeat count; write \{ for the brace itself")
            out.append(match[0].replace("{,", "{0,"))
            at = match.end()
            _no_repeat(pattern, at)
        else:
            if _NOTHING_BEFORE.match(pattern, at) or (at == 0 and char in "*+?"):
                raise ValueError(f"{pattern[at : at + 2]!r}: there is nothing to repeat")
            out.append(char)
            at += 1
            if char in "*+?":
                _no_repeat(pattern, at)
    return "".join(out)


def _no_repeat(pattern: str, at: int) -> None:
    if pattern[at : at + 1] in ("+", "?", "*", "{"):
        raise ValueError("a repeat right behind a repeat means something else in Perl; write it with parentheses")


def _posix_escape(char: str) -> str:
    if char == "<":
        return r"\b(?=\w)"
    if char == ">":
        return r"\b(?<=\w)"
    if char == "`":
        return r"\A"
    if char == "'":
        return r"\z"
    if not char:
        raise ValueError("a backslash stands at the end")
    if char.isalnum() and char not in _POSIX_ESCAPES:
        raise ValueError(rf"'\{char}' is no POSIX expression; write [0-9] for \d, or use a pcre: table")
    return "\\" + char


def _bracket(pattern: str, start: int) -> tuple[str, int]:
    """The bracket expression at `start` in Perl's spelling, where a backslash escapes, and where the pattern goes
    on.
    """
    at = start + 1
    out = ["["]
    if pattern.startswith("^", at):
        out.append("^")
        at += 1
    first = at
    while at < len(pattern):
        char = pattern[at]
        if char == "]" and at > first:
            return "".join(out) + "]", at + 1
        if char == "[" and pattern[at + 1 : at + 2] in (":", ".", "="):
            end = pattern.find(f"{pattern[at + 1]}]", at + 2)
            text = pattern[at : end + 2 if end >= 0 else len(pattern)]
            if not re.fullmatch(r"\[:[a-z]+:\]", text) or text == "[:word:]":
                raise ValueError(f"{text!r} is not supported in brackets")
            out.append(text)
            at += len(text)
            continue
        out.append("\\" + char if char in "\\[]" else char)
        at += 1
    raise ValueError("a bracket is not closed")
