# SPDX-License-Identifier: GPL-3.0-or-later
"""Lets the milter fail at a line that a test chooses. To be imported in the milter's own process, before pymilter is.

`$MILTER_FAULT` names a file that holds `FIRST-PART NUMBER`: of the files of gatekeeper whose path has that part, the
NUMBER-th line that a connection comes to in libmilter's threads, or in the event loop, raises MemoryError; 0 is none.
Into `$MILTER_FAULT.lines` goes how many lines it has come to before the answer to a message.
"""

import linecache
import os
import sys
from collections.abc import Callable, Sequence
from importlib.abc import MetaPathFinder
from importlib.machinery import ModuleSpec, PathFinder
from pathlib import Path
from types import FrameType, ModuleType
from typing import Any

_WHERE = Path(os.environ.get("MILTER_FAULT", "/nonexistent"))


class _Fault:
    part = "?"
    at = 0
    passed = 0


def _trace(frame: FrameType, event: str, argument: Any) -> Any:
    return _outermost if frame.f_back is not None and frame.f_back.f_code is _BOUNDARY else _inner(frame)


def _inner(frame: FrameType) -> Any:
    return _step if _Fault.part in frame.f_code.co_filename else None


def _outermost(frame: FrameType, event: str, argument: Any) -> Any:
    """What libmilter calls cannot fail before it has come to its `try`: there is nothing yet."""
    line = linecache.getline(frame.f_code.co_filename, frame.f_lineno)
    return _inner(frame) if line.strip() == "try:" else _outermost


def _step(frame: FrameType, event: str, argument: Any) -> Any:
    if event == "line":
        _Fault.passed += 1
        if _Fault.passed == _Fault.at:
            raise MemoryError(f"line {frame.f_lineno} of {Path(frame.f_code.co_filename).name}")
    return _step


def _failing(callback: Callable[..., Any]) -> Callable[..., Any]:
    def call(*arguments: Any) -> Any:
        if callback.__name__ == "negotiate":
            part, at = _WHERE.read_text().split()
            _Fault.part, _Fault.at, _Fault.passed = part, int(at), 0
            callback.__self__._loop.call_soon_threadsafe(sys.settrace, _trace)  # type: ignore[attr-defined]  # a bound method
        sys.settrace(_trace)
        try:
            return callback(*arguments)
        finally:
            sys.settrace(None)
            if callback.__name__ == "end_of_message":
                _WHERE.with_suffix(".lines").write_text(str(_Fault.passed))

    return call


_BOUNDARY = next(code for code in _failing.__code__.co_consts if hasattr(code, "co_code"))


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
                    setattr(module, name, lambda callback, setter=setter: setter(_failing(callback)))
                register = module.register
                module.register = lambda name, negotiate: register(name, negotiate=_failing(negotiate))  # type: ignore[attr-defined]  # of this one import

            spec.loader.exec_module = changed  # type: ignore[method-assign]  # of this one import
        return spec


sys.meta_path.insert(0, _Milter())
