# SPDX-License-Identifier: GPL-3.0-or-later
"""`make attack`: the whole service under load while everything around it fails, and while strangers feed it nonsense.

Not part of `make test`: it takes twenty minutes. `world` is the service that is attacked and all that it lives on,
`honest` the clients that go on asking what they know the answer to, `faults` what is done to the service from below,
`fuzz` what is done to it from the front, `__main__` the command and its report.
"""
