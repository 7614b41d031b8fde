# SPDX-License-Identifier: GPL-3.0-or-later
"""Lets coverage see what runs in libmilter's threads. To be imported before pymilter is, in a process that is measured.

A trace function is set for each thread, and Python does that for its own threads only: those of libmilter are made in
C, and everything that a milter is called back for would count as never run.
"""

import sys
import threading
from collections.abc import Callable, Sequence
from importlib.abc import MetaPathFinder
from importlib.machinery import ModuleSpec, PathFinder
from types import ModuleType
from typing import Any


def traced(callback: Callable[..., Any]) -> Callable[..., Any]:
    """`callback`, measured in whichever thread it is called."""

    def call(*arguments: Any) -> Any:
        if sys.gettrace() is None and (trace := threading.gettrace()) is not None:
            sys.settrace(trace)
        return callback(*arguments)

    return call


class _Milter(MetaPathFinder):
    """Finds pymilter's C module as always, and changes its functions that take a callback."""

    def find_spec(
        self, fullname: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        if fullname != "milter":
            return None
        spec = PathFinder.find_spec(fullname, path, target)
        if spec is not None and spec.loader is not None:
            load = spec.loader.exec_module

            def changed(module: ModuleType) -> None:
                load(module)
                for name in [name for name in dir(module) if name.endswith("_callback")]:
                    setter = getattr(module, name)
                    setattr(module, name, lambda callback, setter=setter: setter(traced(callback)))

            spec.loader.exec_module = changed  # type: ignore[method-assign]  # of this one import
        return spec


sys.meta_path.insert(0, _Milter())
