"""Transaction ids: ``view.seqno``."""

from __future__ import annotations

import re
from typing import NamedTuple

from coco.errors import RequestError

_FORM = re.compile(r"([0-9]{1,10})\.([0-9]{1,19})")


class TransactionId(NamedTuple):
    """Where an entry lies: the view that wrote it and its number. Ordered by view, then seqno."""

    view: int
    seqno: int

    def __str__(self) -> str:
        return f"{self.view}.{self.seqno}"

    @classmethod
    def parse(cls, text: str) -> TransactionId:
        """Read ``view.seqno``.

        Raises:
            RequestError: ``text`` has another form.
        """
        match = _FORM.fullmatch(text)
        if match is None:
            raise RequestError(
                f"{text[:40]!r} is no transaction id",
                code="request.bad_transaction_id",
                hint="write it as view.seqno, like 2.17",
            )
        return cls(int(match[1]), int(match[2]))
