"""This node's evidence: from its platform, with what its host says of the platform, judged here before anybody sees it.

Vendors sign what they know of a platform for days or weeks: the *endorsements*. The host gets them, at the start and
again whenever there are newer ones, and may lie or be lazy; whatever does not verify with fresh evidence of this very
node is refused and named. Newer ones go into the node's row and its certificate, by the primary (H6).
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import Awaitable, Callable, Mapping
from typing import Any, Final

from coco.attestation import policy
from coco.attestation.evidence import VIRTUAL, Evidence, report_data
from coco.attestation.verified import Verified
from coco.enclave.platform.control import Control
from coco.enclave.platform.evidence.attester import Attester
from coco.errors import AttestationError, BusyError, CocoError, ConsensusError

#: A question to the primary: newer evidence for the row of the node that asks.
EVIDENCE: Final = "evidence"
_AGAIN_S: Final = 1.0


class NodeEvidence:
    """Evidence of one node.

    Args:
        attester: the platform.
        control: the host.
        now_s: the time, in seconds since the Unix epoch.
    """

    def __init__(self, attester: Attester, control: Control, now_s: Callable[[], int]) -> None:
        self.platform = attester.name
        self._attester, self._control, self._now_s = attester, control, now_s
        self._endorsements: dict[str, str] = {}
        self._report_data = b""
        #: What the platform's evidence proves, with the endorsements that are in use.
        self.verified: Verified
        self._newer = asyncio.Event()
        self._judging = asyncio.Lock()
        self._tasks: set[asyncio.Task[None]] = set()

    @property
    def is_virtual(self) -> bool:
        """Whether there is no platform, and nothing is proven."""
        return self.platform == VIRTUAL

    async def begin(self, node_key: bytes, context: Mapping[str, bytes]) -> Evidence:
        """The first evidence, with the host's endorsements.

        Args:
            node_key: DER SubjectPublicKeyInfo of the node key.
            context: what it binds besides, by the names of :func:`~coco.attestation.evidence.report_data`.

        Raises:
            CocoError: the platform gives none, or what it and the host give proves nothing.
        """
        self._report_data = report_data(node_key, **context)
        found = await self._attester.evidence(self._report_data)
        if not self.is_virtual:
            offered = await self._control.endorse(found.platform, found.evidence)
            self._endorsements = _parse(offered)
            # From now on it may have newer ones at any time.
            self._control.on_endorsed = self._offered
        evidence = self._endorsed(found, self._endorsements)
        self.verified = self._judge(evidence)
        return evidence

    async def evidence(self, node_key: bytes, context: Mapping[str, bytes]) -> Evidence:
        """Fresh evidence.

        Raises:
            CocoError: the platform gives none, or is busy.
        """
        return self._endorsed(await self._attester.evidence(report_data(node_key, **context)), self._endorsements)

    @staticmethod
    def _endorsed(evidence: Evidence, endorsements: Mapping[str, str]) -> Evidence:
        return Evidence(evidence.platform, evidence.evidence, {**evidence.endorsements, **endorsements})

    def _judge(self, evidence: Evidence) -> Verified:
        verified = evidence.verify(now_s=self._now_s())
        policy.check_report_data(verified, self._report_data)
        return verified

    # --- newer endorsements ---

    def _offered(self, document: bytes) -> None:
        task = asyncio.get_running_loop().create_task(self._take(document))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _take(self, document: bytes) -> None:
        """Use what the host offers, if it verifies and counts for no shorter."""
        try:
            async with self._judging:
                endorsements = _parse(document)
                verified = self._judge(self._endorsed(await self._attester.evidence(self._report_data), endorsements))
                if verified.valid_until_s < self.verified.valid_until_s:
                    raise AttestationError("the endorsements end earlier than those in use", code="attestation.older")
                self._endorsements, self.verified = endorsements, verified
        except CocoError as error:
            self._control.log("attestation.endorsements_refused", {}, {"code": error.code})
            return
        self._control.log("attestation.endorsements_taken", {"until": verified.valid_until_s})
        self._newer.set()

    async def run(self, renew: Callable[[dict[str, str]], Awaitable[None]]) -> None:
        """Have newer evidence put into this node's row; for ever.

        Args:
            renew: asks the primary for it.
        """
        while True:
            await self._newer.wait()
            try:
                found = await self._attester.evidence(self._report_data)
                await renew(self._endorsed(found, self._endorsements).to_json())
            except (BusyError, ConsensusError):
                await asyncio.sleep(_AGAIN_S)
                continue
            except CocoError as error:
                self._control.log("attestation.renewal_refused", {}, {"code": error.code})
            self._newer.clear()


def _parse(document: bytes) -> dict[str, str]:
    """Endorsements as the host gives them: a JSON object of texts; empty: none.

    Raises:
        AttestationError: ``attestation.malformed``.
    """
    try:
        found: Any = json.loads(document.decode()) if document else {}
    except (ValueError, RecursionError) as error:
        raise AttestationError("the endorsements are malformed", code="attestation.malformed") from error
    if not isinstance(found, dict) or not all(isinstance(one, str) for one in found.values()):
        raise AttestationError("the endorsements are malformed", code="attestation.malformed")
    return found
