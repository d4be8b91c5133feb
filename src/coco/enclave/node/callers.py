"""Who is behind each connection, in the configuration of this moment; who is nobody any more loses its connections."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Sequence

from coco import limits
from coco.configuration.actors import Actors, KnownCaller
from coco.configuration.callers import Caller, CallerKind
from coco.enclave.api.http import Listener
from coco.enclave.platform.clock import Clock
from coco.enclave.store import StoreView


class Callers:
    """The callers of one node.

    Args:
        clock: of the enclave.
        committed: number of the last committed entry.
        view: the state after an entry.
    """

    def __init__(self, clock: Callable[[], Clock], committed: Callable[[], int], view: Callable[[int], StoreView]):
        self._clock, self._committed, self._view = clock, committed, view
        self._known: dict[bytes | None, KnownCaller] = {}
        #: Entries that change who is who and are not committed yet.
        self._old_at: deque[int] = deque()
        self.listeners: list[Listener] = []

    def caller(self, certificate: bytes | None) -> Caller:
        """Who shows this certificate.

        The answer is kept only until the next change of the configuration tables, or the end of the certificate.
        """
        self.forget()
        known = self._known.get(certificate)
        now_ms = self._clock().now_ms
        if known is None or known.until_ms < now_ms:
            known = Actors(self._view(self._committed()), now_ms).caller(certificate)
            if len(self._known) > limits.CONNECTIONS_MAX:
                # Whoever is connected stays known: only so is it noticed that somebody is nobody any more.
                connected = {der for listener in self.listeners for der in listener.certificates}
                self._known = {der: kept for der, kept in self._known.items() if der in connected}
            self._known[certificate] = known
        return known.caller

    def changed(self, seqno: int) -> None:
        """The entry ``seqno`` changes who is who."""
        while self._old_at and self._old_at[-1] >= seqno:
            self._old_at.pop()  # that entry was rolled back
        self._old_at.append(seqno)

    def forget(self) -> None:
        """Look everybody up again once who is who has changed; who is nobody any more loses its connections (G4)."""
        committed = self._committed()
        if not self._old_at or self._old_at[0] > committed:
            return
        while self._old_at and self._old_at[0] <= committed:
            self._old_at.popleft()
        known, self._known = self._known, {}
        somebody = [der for der, kept in known.items() if kept.caller.kind is not CallerKind.ANONYMOUS]
        gone = {der for der in somebody if self.caller(der).kind is CallerKind.ANONYMOUS}
        for listener in self.listeners if gone else ():
            listener.close_those(gone)

    def show(self, chain: Sequence[bytes], key: bytes) -> None:
        """Show another certificate to whoever connects from now on."""
        for listener in self.listeners:
            listener.show(chain, key)
