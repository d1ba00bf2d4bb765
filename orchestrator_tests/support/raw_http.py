"""A server that sends bytes of the test's choice, at its own pace, until they end or the client hangs up."""

from __future__ import annotations

import contextlib
import itertools
import socket
import threading
from collections.abc import Iterable, Iterator
from contextlib import contextmanager

PACE_SECONDS = 0.02


class RawServer:
    """Answers each connection with the same bytes.

    Attributes:
        url: its address.
        requests: how many came.
        hung_up: the client closed a connection before all was sent.
    """

    def __init__(self, answer: Iterable[bytes], *, slowly: bool) -> None:
        self.requests = 0
        self.hung_up = threading.Event()
        self._answer = answer
        self._slowly = slowly
        self._socket = socket.create_server(("127.0.0.1", 0))
        self.url = f"http://127.0.0.1:{self._socket.getsockname()[1]}"
        self._thread = threading.Thread(target=self._serve, daemon=True)
        self._thread.start()

    def close(self) -> None:
        """Stop listening."""
        self._socket.shutdown(socket.SHUT_RDWR)
        self._socket.close()
        self._thread.join()

    def _serve(self) -> None:
        with contextlib.suppress(OSError):
            while True:
                connection, _ = self._socket.accept()
                threading.Thread(target=self._serve_one, args=(connection,), daemon=True).start()

    def _serve_one(self, connection: socket.socket) -> None:
        with connection:
            while not connection.recv(1 << 16).endswith((b"\r\n\r\n", b"}")):
                pass
            self.requests += 1
            try:
                for part in self._answer:
                    connection.sendall(part)
                    if self._slowly and _closed(connection):
                        self.hung_up.set()
                        return
            except OSError:
                self.hung_up.set()


def _closed(connection: socket.socket) -> bool:
    """Wait a little; whether the other end has closed meanwhile."""
    connection.settimeout(PACE_SECONDS)
    try:
        return connection.recv(1) == b""
    except TimeoutError:
        return False
    finally:
        connection.settimeout(None)


@contextmanager
def raw_server(*answer: bytes, then: bytes = b"", times: int = 500, slowly: bool = True) -> Iterator[RawServer]:
    """Serve `answer`, and then `then` so many times, with a pause after each part.

    Args:
        answer: parts, each sent at once.
        then: another part.
        times: how often that is sent: in the end the server gives up, so that a client without bounds fails its test.
        slowly: pause after each part.
    """
    server = RawServer(_Parts(answer, then, times), slowly=slowly)
    try:
        yield server
    finally:
        server.close()


class _Parts:
    def __init__(self, answer: tuple[bytes, ...], then: bytes, times: int) -> None:
        self._parts = (answer, then, times)

    def __iter__(self) -> Iterator[bytes]:
        answer, then, times = self._parts
        return itertools.chain(answer, itertools.repeat(then, times) if then else ())
