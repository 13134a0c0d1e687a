"""Every process of a job learns within seconds that another one has failed or died.

Collective operations tell of it late or never: what waits for a dead process on another machine
waits until a timeout, which must be longer than the longest evaluation. So each process keeps a
connection open to process 0. The system closes it when a process ends, however it ends, and its
keep-alive finds a machine that is gone within half a minute; no thread of ours has to beat. A
process that fails says why before it ends, and process 0 passes it on.
"""

from __future__ import annotations

import contextlib
import json
import logging
import os
import secrets
import selectors
import socket
import threading
from collections.abc import Iterator, Sequence
from types import TracebackType

from predet.d2.embedded import comm

logger = logging.getLogger(__name__)

GRACE_SECONDS = 15.0  # for the main thread to fail by itself, once another process has
_CONNECT_SECONDS = 20.0
_FAREWELL = "bye"
# Idle seconds before the first probe, seconds between probes, probes: 30 s to find a dead machine.
_KEEPALIVE = {"TCP_KEEPIDLE": 10, "TCP_KEEPINTVL": 5, "TCP_KEEPCNT": 4}


class Lifeline:
    """Use as a context around the work of one process; all processes enter it together.

    When another process fails, the main thread has `GRACE_SECONDS` to fail by itself (it does at
    once, if it waits for a process of its machine); then this process is ended with status 1.

    Args:
        hosts: names of the machine of process 0, tried before those that it finds itself.
    """

    def __init__(self, hosts: Sequence[str] = ()) -> None:
        self._hosts = list(hosts)
        self._rank = comm.get_rank()
        self._links: dict[int, socket.socket] = {}  # by the rank at the other end
        self._over: set[int] = set()  # ranks whose work has ended well
        self._news: str | None = None
        self._told = threading.Event()
        self._left = threading.Event()
        self._lock = threading.Lock()

    def __enter__(self) -> Lifeline:
        if comm.get_world_size() > 1:
            self._connect()
            os.register_at_fork(after_in_child=self._let_go)
            threading.Thread(target=self._watch, daemon=True, name="lifeline").start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._left.set()
        failed = error is not None and not (isinstance(error, SystemExit) and not error.code)
        if self._news is None:
            self._tell(self._describe(error) if failed else _FAREWELL)

    def failure_of_another(self, patience: float = 0.0) -> str | None:
        """What another process has died of, waiting up to `patience` seconds for the news."""
        self._told.wait(patience if self._links else 0)
        return self._news

    def _describe(self, error: BaseException | None) -> str:
        text = str(error.code if isinstance(error, SystemExit) else error).strip()
        name = "" if isinstance(error, SystemExit) else f"{type(error).__name__}: "
        return f"process {self._rank} of {comm.get_world_size()} failed: {name}{text}"

    # -- connecting ------------------------------------------------------------------------------

    def _connect(self) -> None:
        world_size = comm.get_world_size()
        local = comm.get_local_size() == world_size
        token, server = secrets.token_hex(16), None
        if self._rank == 0:
            server = socket.create_server(("127.0.0.1" if local else "", 0), backlog=world_size)
            server.settimeout(_CONNECT_SECONDS)
        hosts = ["127.0.0.1"] if local else [*self._hosts, *_own_addresses()]
        place = (hosts, server.getsockname()[1], token) if server else None
        hosts, port, token = comm.all_gather(place)[0]
        if server is not None:
            with server:
                self._links = _accept(server, token, world_size - 1)
        else:
            link = _reach(hosts, port, f"{token} {self._rank}\n")
            self._links = {0: link} if link else {}
        lost = [rank for rank, links in enumerate(comm.all_gather(len(self._links))) if not links]
        if lost:
            logger.warning(
                "no lifeline to process(es) %s: should they die, others notice it at a timeout",
                ", ".join(map(str, lost)),
            )

    def _let_go(self) -> None:
        """In a forked loader worker, which may outlive this process and must not seem to be it."""
        for link in self._links.values():
            with contextlib.suppress(OSError):
                os.close(link.detach())
        self._links = {}

    # -- talking ---------------------------------------------------------------------------------

    def _tell(self, text: str, but: int | None = None) -> None:
        with self._lock:
            for rank, link in self._links.items():
                if rank != but:
                    with contextlib.suppress(OSError):
                        link.sendall(json.dumps(text).encode() + b"\n")

    def _watch(self) -> None:
        with selectors.DefaultSelector() as selector:
            for rank, link in self._links.items():
                selector.register(link, selectors.EVENT_READ, (rank, link.makefile("rb")))
            while selector.get_map():
                for key, _ in selector.select():
                    rank, lines = key.data
                    if not self._hear(rank, lines):
                        selector.unregister(key.fileobj)

    def _hear(self, rank: int, lines) -> bool:
        """Take in what a link has to say; False when it is at its end."""
        try:
            line = lines.readline()
        except OSError:
            line = b""
        text = json.loads(line) if line else None
        if text == _FAREWELL:
            self._over.add(rank)
            return True
        if text is None and rank in self._over:
            return False
        self._receive(
            text
            or f"process {rank} of {comm.get_world_size()} died without a word (killed, out "
            "of memory, or its machine is gone)",
            rank,
        )
        return text is not None

    def _receive(self, news: str, rank: int) -> None:
        if self._news is not None or self._left.is_set():
            return
        self._news = news
        self._told.set()
        self._tell(news, but=rank)
        if not self._left.wait(GRACE_SECONDS):
            logger.error("%s; this process, which works or waits on, is ended", news)
            os._exit(1)


def _accept(server: socket.socket, token: str, count: int) -> dict[int, socket.socket]:
    """The connections of the other processes, as many as come in time."""
    links: dict[int, socket.socket] = {}
    with contextlib.suppress(TimeoutError):
        while len(links) < count:
            link, _ = server.accept()
            link.settimeout(_CONNECT_SECONDS)
            said = link.makefile("rb").readline().decode(errors="replace").split()
            if len(said) == 2 and said[0] == token:
                link.sendall(b"\n")
                links[int(said[1])] = _keep_alive(link)
            else:
                link.close()
    return links


def _reach(hosts: Sequence[str], port: int, greeting: str) -> socket.socket | None:
    for host in dict.fromkeys(hosts):
        with contextlib.suppress(OSError):
            link = socket.create_connection((host, port), timeout=_CONNECT_SECONDS / len(hosts))
            link.sendall(greeting.encode())
            if link.recv(1) == b"\n":
                return _keep_alive(link)
            link.close()
    return None


def _keep_alive(link: socket.socket) -> socket.socket:
    link.settimeout(None)
    link.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    for name, value in _KEEPALIVE.items():
        if hasattr(socket, name):
            link.setsockopt(socket.IPPROTO_TCP, getattr(socket, name), value)
    return link


def _own_addresses() -> Iterator[str]:
    """Under which other machines may reach this one."""
    if "MASTER_ADDR" in os.environ:
        yield os.environ["MASTER_ADDR"]
    with contextlib.suppress(OSError), socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        probe.connect(("192.0.2.1", 9))  # sends nothing; chooses the interface to the outside
        yield probe.getsockname()[0]
    with contextlib.suppress(OSError):
        yield socket.gethostbyname(socket.gethostname())
