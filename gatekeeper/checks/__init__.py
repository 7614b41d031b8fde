# SPDX-License-Identifier: GPL-3.0-or-later
"""The checks of a restriction list: one small class or function for each question asked about a message.

`base` holds what all of them share. `tables`, `limits`, `dnslists`, `authentication`, `greylisting` and `restrictions`
hold the checks by subject. `builder` turns the words of a restriction list into checks.
"""
