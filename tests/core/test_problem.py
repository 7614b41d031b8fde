# SPDX-License-Identifier: GPL-3.0-or-later
"""Mistakes as people read them."""

from gatekeeper.core.problem import Problem


def test_what_opens_something_looks_different_from_a_warning_and_from_an_error() -> None:
    error = Problem("main", 3, "wrong")
    warning = Problem("main", 3, "odd", warning=True)
    said = [str(one) for one in (error, warning, warning.opening(), error.opening(), Problem("main", 0, "x").opening())]
    assert [
        "main:3: wrong",
        "main:3: warning: odd",
        "main:3: OPENS: odd",
        "main:3: OPENS: wrong",
        "main: OPENS: x",
    ] == said


def test_what_opens_something_does_not_keep_the_configuration_from_being_used() -> None:
    assert Problem("main", 3, "wrong").opening().warning
