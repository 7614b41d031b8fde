# SPDX-License-Identifier: GPL-3.0-or-later
"""What a relay wrote about its mail, read: files to lines, lines to events, events to stories.

One reader under all commands that look at a log: `files` opens what people keep logs in, `lines` reads the notations of
syslog and of the journal, `reader` puts several logs in order of time, `postfix_lines` and `companion_lines` know what
each program writes, `stories` joins what belongs to one mail or session.

What stands in a log came from strangers: nothing here fails for it, and whoever prints a value makes it printable.
"""
