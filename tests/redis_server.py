# SPDX-License-Identifier: GPL-3.0-or-later
"""A real redis-server for one test: on a unix socket and a free TCP port, in a folder of its own, ended by its pid."""

import os
import signal
import socket
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import redis

from tests.conftest import require_program


def free_port() -> int:
    """A TCP port on loopback that was free a moment ago."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


class RedisServer:
    """One server; `options` are words of its command line. Can be stopped and started again, empty."""

    def __init__(self, folder: Path, *options: str, mode: tuple[str, ...] = ()) -> None:
        self.port = free_port()
        self.socket = folder / "redis.sock"
        self.url = f"unix://{self.socket}?db=0"
        self.tcp_url = f"redis://127.0.0.1:{self.port}/0"
        program = require_program("redis-server", "redis-server")
        where = ("--bind", "127.0.0.1", "--port", str(self.port), "--unixsocket", str(self.socket))
        self._command = [program, *mode, *where, "--dir", str(folder), "--save", "", *options]
        self._process: subprocess.Popen[bytes] | None = None

    @property
    def admin(self) -> Any:
        """A plain client for what the test does to the server."""
        return redis.Redis(unix_socket_path=str(self.socket), decode_responses=True)

    def start(self) -> None:
        """Run the server and wait until it answers."""
        self._process = subprocess.Popen(self._command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        deadline = time.monotonic() + 10
        while True:
            try:
                self.admin.ping()
                return
            except redis.exceptions.RedisError:
                assert self._process.poll() is None, f"{self._command} ended with {self._process.returncode}"
                assert time.monotonic() < deadline, f"{self._command} does not answer"
                time.sleep(0.02)

    def stop(self) -> None:
        """End the server, without asking it to: it may hang."""
        if self._process is not None:
            os.kill(self._process.pid, signal.SIGKILL)
            self._process.wait()
            self._process = None


@contextmanager
def redis_server(*options: str, mode: tuple[str, ...] = ()) -> Iterator[RedisServer]:
    """A server that runs while the block does."""
    with TemporaryDirectory(prefix="gatekeeper-redis-") as folder:
        server = RedisServer(Path(folder), *options, mode=mode)
        try:
            server.start()
            yield server
        finally:
            server.stop()
