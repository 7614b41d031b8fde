# SPDX-License-Identifier: GPL-3.0-or-later
"""As much of Dovecot's authentication service as makes Postfix offer AUTH.

`permit_sasl_authenticated` only looks at who is logged in where SASL is switched on, and Postfix switches it on only
if a service offers mechanisms. Nobody authenticates here: `XCLIENT LOGIN=` says who has.
"""

import socketserver
import threading
from pathlib import Path

_HELLO = b"VERSION\t1\t1\nMECH\tPLAIN\tplaintext\nSPID\t1\nCUID\t1\nCOOKIE\t0123456789abcdef0123456789abcdef\nDONE\n"


class _Server(socketserver.ThreadingUnixStreamServer):
    daemon_threads = True


class _Connection(socketserver.StreamRequestHandler):
    def handle(self) -> None:
        try:
            self.wfile.write(_HELLO)
            while self.rfile.readline():
                pass
        except OSError:
            pass


class SaslServer:
    """Listens at `path` from when it is made until `close`."""

    def __init__(self, path: Path) -> None:
        self._server = _Server(str(path), _Connection)
        path.chmod(0o666)
        threading.Thread(target=self._server.serve_forever, args=(0.1,), daemon=True).start()

    def close(self) -> None:
        """Stop listening."""
        self._server.shutdown()
        self._server.server_close()
