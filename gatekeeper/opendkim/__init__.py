# SPDX-License-Identifier: GPL-3.0-or-later
"""OpenDKIM's configuration as ours: `gatekeeper opendkim` runs from it, `gatekeeper import-opendkim` writes it as TOML.

conf.py reads opendkim.conf, options.py knows every option there is, mapping.py turns the settings into the tree that
gatekeeper.toml would be, deviations.py lists what is different on purpose, toml.py and import_report.py write for the
import, query.py is `-Q`.
"""
