# SPDX-License-Identifier: GPL-3.0-or-later
"""Real redis-servers for tests: on a unix socket and a free TCP port, in a folder of their own, ended by their pid."""

import os
import signal
import subprocess
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from datetime import UTC, datetime, timedelta
from ipaddress import ip_address
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import redis
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec

from tests.lab.ports import free_port
from tests.support.needs import require_program


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
        deadline = time.monotonic() + 60
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


@contextmanager
def redis_cluster() -> Iterator[list[RedisServer]]:
    """Three nodes that share the slots, ready."""
    client = require_program("redis-cli", "redis-tools")
    with ExitStack() as stack:
        nodes = [stack.enter_context(redis_server(*_node_options())) for _ in range(3)]
        places = [f"127.0.0.1:{node.port}" for node in nodes]
        subprocess.run([client, "--cluster", "create", *places, "--cluster-yes"], check=True, capture_output=True)
        deadline = time.monotonic() + 60
        while any(node.admin.execute_command("CLUSTER INFO")["cluster_state"] != "ok" for node in nodes):
            assert time.monotonic() < deadline, "the nodes do not agree"
            time.sleep(0.05)
        yield nodes


def _node_options() -> tuple[str, ...]:
    return ("--cluster-enabled", "yes", "--cluster-port", str(free_port()), "--cluster-node-timeout", "2000")


def make_certificates(folder: Path) -> tuple[Path, Path, Path]:
    """A CA of our own, and a certificate and key for 127.0.0.1 that it has signed."""
    ca_key, key = ec.generate_private_key(ec.SECP256R1()), ec.generate_private_key(ec.SECP256R1())
    issuer = x509.Name.from_rfc4514_string("CN=a CA of our own")
    ca = _certificate(issuer, issuer, ca_key, ca_key).add_extension(x509.BasicConstraints(True, 0), critical=True)
    here = x509.SubjectAlternativeName([x509.IPAddress(ip_address("127.0.0.1"))])
    server = _certificate(x509.Name.from_rfc4514_string("CN=redis"), issuer, key, ca_key).add_extension(here, False)
    files = folder / "ca.pem", folder / "cert.pem", folder / "key.pem"
    for path, builder in zip(files, (ca, server), strict=False):
        path.write_bytes(builder.sign(ca_key, hashes.SHA256()).public_bytes(serialization.Encoding.PEM))
    pem, pkcs8, plain = (
        serialization.Encoding.PEM,
        serialization.PrivateFormat.PKCS8,
        serialization.NoEncryption(),
    )
    files[2].write_bytes(key.private_bytes(pem, pkcs8, plain))
    return files


def _certificate(
    subject: x509.Name, issuer: x509.Name, key: ec.EllipticCurvePrivateKey, signer: ec.EllipticCurvePrivateKey
) -> x509.CertificateBuilder:
    now = datetime.now(UTC)
    return (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(issuer)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - timedelta(days=1))
        .not_valid_after(now + timedelta(days=1))
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(key.public_key()), False)
        .add_extension(x509.AuthorityKeyIdentifier.from_issuer_public_key(signer.public_key()), False)
    )
