# SPDX-License-Identifier: GPL-3.0-or-later
"""OpenDKIM's configuration as ours: what `gatekeeper opendkim` runs from and `gatekeeper import-opendkim` converts.

conf.py reads opendkim.conf, options.py lists every option, mapping.py turns the settings into the tree of an equivalent
gatekeeper.toml, deviations.py lists what is different on purpose, toml.py and import_report.py write the output of the
import, query.py is `-Q`.
"""
