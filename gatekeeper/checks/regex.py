# SPDX-License-Identifier: GPL-3.0-or-later
r"""Postfix's regular expressions, regexp_table(5) and pcre_table(5), as Python's `re` understands them.

Both worlds get the same answer, or the pattern is refused with the reason. POSIX: classes (`[[:alpha:]]`) are spelled
out, a backslash in brackets is itself, `\<` and `\>` are word ends; `\d`, `(?` and basic expressions are refused. Perl:
what Python lacks (recursion, `\Q`, `\h`, named groups without P, ...) it refuses by itself. Matching is on ASCII.

Known limit: Python has no time limit for matching. A repeat inside a repeat (`(a+)+`) can take exponential time on a
hostile name, so it is named as a warning, and names over MAX_SUBJECT characters are not looked up at all.
"""

import re

MAX_SUBJECT = 1000
"""Characters: more than any host name or mailbox that SMTP allows (RFC 5321 section 4.5.3.1)."""

_CLASSES = {
    "alnum": "A-Za-z0-9",
    "alpha": "A-Za-z",
    "blank": " \\t",
    "cntrl": "\\x00-\\x1f\\x7f",
    "digit": "0-9",
    "graph": "!-~",
    "lower": "a-z",
    "print": " -~",
    "punct": "!-/:-@\\[-`{-~",
    "space": " \\t\\n\\r\\f\\v",
    "upper": "A-Z",
    "word": "A-Za-z0-9_",
    "xdigit": "0-9A-Fa-f",
}
_FLAGS = {"i": re.IGNORECASE, "m": re.MULTILINE, "s": re.DOTALL, "x": re.VERBOSE}
_POSIX_ESCAPES = frozenset("wWsSbB")
_NESTED_REPEAT = re.compile(r"(?:[*+]|\{\d+,\})\)(?:[*+]|\{\d+,\})")


def compile_posix(pattern: str, flags: str) -> re.Pattern[str]:
    """A pattern of a regexp: table. `flags` toggle: i (on at first), m, x. Raises ValueError with the reason."""
    if flags.count("x") % 2:
        raise ValueError("basic regular expressions (flag x) are not supported; write an extended one")
    return _compile(_from_posix(pattern), _toggle(re.IGNORECASE, flags, "im", "x"))


def compile_perl(pattern: str, flags: str) -> re.Pattern[str]:
    """A pattern of a pcre: table. `flags` toggle: i and s (on at first), m, x, A, E, X. Raises ValueError."""
    python_flags = _toggle(re.IGNORECASE | re.DOTALL, flags, "imsx", "AEX")
    translated = _from_perl(pattern)
    return _compile(rf"\A(?:{translated})" if flags.count("A") % 2 else translated, python_flags)


def is_risky(pattern: str) -> bool:
    """True if a repeat stands directly inside a repeat."""
    return _NESTED_REPEAT.search(pattern) is not None


def _toggle(start: int, flags: str, known: str, ignored: str) -> int:
    value = start
    for flag in flags:
        if flag in known:
            value ^= _FLAGS[flag]
        elif flag not in ignored:
            raise ValueError(f"flag {flag!r} is not supported; allowed: {', '.join(known + ignored)}")
    return value


def _compile(pattern: str, flags: int) -> re.Pattern[str]:
    try:
        return re.compile(pattern, flags | re.ASCII)
    except (re.error, OverflowError, RecursionError) as error:
        raise ValueError(f"cannot be used as a regular expression: {error}") from None


def _from_posix(pattern: str) -> str:
    out: list[str] = []
    at = 0
    while at < len(pattern):
        char = pattern[at]
        if char == "[":
            text, at = _bracket(pattern, at, backslash_escapes=False)
            out.append(text)
            continue
        if char == "\\":
            following = pattern[at + 1 : at + 2]
            out.append(_posix_escape(following))
            at += 2
            continue
        if pattern.startswith("(?", at):
            raise ValueError("'(?' is Perl's; a pcre: table understands it")
        if char in "*+?}" and pattern[at + 1 : at + 2] == "+":
            raise ValueError(f"'{char}+' means something else in Perl and in POSIX; write it with parentheses")
        out.append(char)
        at += 1
    return "".join(out)


def _posix_escape(char: str) -> str:
    if char == "<":
        return r"\b(?=\w)"
    if char == ">":
        return r"\b(?<=\w)"
    if not char:
        raise ValueError("a backslash stands at the end")
    if char.isalpha() and char not in _POSIX_ESCAPES:
        raise ValueError(rf"'\{char}' is no POSIX expression; write [0-9] for \d, or use a pcre: table")
    return "\\" + char


def _from_perl(pattern: str) -> str:
    out: list[str] = []
    at = 0
    while at < len(pattern):
        if pattern[at] == "[":
            text, at = _bracket(pattern, at, backslash_escapes=True)
            out.append(text)
        elif pattern[at] == "\\":
            out.append(pattern[at : at + 2])
            at += 2
        else:
            out.append(pattern[at])
            at += 1
    return "".join(out)


def _bracket(pattern: str, start: int, *, backslash_escapes: bool) -> tuple[str, int]:
    """The bracket expression at `start` in Python's spelling, and where the pattern goes on."""
    at = start + 1
    out = ["["]
    if pattern.startswith("^", at):
        out.append("^")
        at += 1
    first = True
    while at < len(pattern):
        char = pattern[at]
        if char == "]" and not first:
            return "".join(out) + "]", at + 1
        first = False
        if char == "[" and pattern[at + 1 : at + 2] in (":", ".", "="):
            text, at = _class(pattern, at)
            out.append(text)
            continue
        if char == "\\" and backslash_escapes:
            out.append(pattern[at : at + 2])
            at += 2
            continue
        # Python would take some of these, doubled, for set operations
        out.append("\\" + char if char in "\\[]&~|^" else char)
        at += 1
    raise ValueError("a bracket is not closed")


def _class(pattern: str, at: int) -> tuple[str, int]:
    kind = pattern[at + 1]
    end = pattern.find(f"{kind}]", at + 2)
    name = pattern[at + 2 : end]
    if end >= 0 and kind == ":":
        negated = name.startswith("^")
        if name in _CLASSES:
            return _CLASSES[name], end + 2
        if negated:
            raise ValueError(f"[:{name}:] is not supported; write the class out")
    raise ValueError(f"{pattern[at : end + 2 if end >= 0 else len(pattern)]!r} is not supported in brackets")
