"""Bodies that schemathesis cannot make by itself: COSE messages, well formed and not."""

from __future__ import annotations

import json

import cbor2
import schemathesis
from hypothesis import strategies as st

_KINDS = st.sampled_from(
    ["proposal", "ballot", "withdrawal", "state_digest", "ack", "recovery_share", "coco.identity_statement"]
)
_IDS = st.text("0123456789abcdef", min_size=64, max_size=64)
_HEADERS = st.fixed_dictionaries(
    {1: st.sampled_from([-35, -7, 0]), 4: st.one_of(_IDS.map(str.encode), st.integers(), st.binary(max_size=64))},
    optional={
        "ccf.gov.msg.type": _KINDS,
        "ccf.gov.msg.created_at": st.one_of(st.integers(-1, 1 << 41), st.text(max_size=5)),
        "ccf.gov.msg.proposal_id": st.one_of(_IDS, st.integers(), st.lists(st.integers(), max_size=2)),
        33: st.one_of(st.binary(max_size=200), st.lists(st.binary(max_size=20), max_size=2)),
    },
)
_PAYLOADS = st.one_of(
    st.binary(max_size=200),
    st.recursive(
        st.none() | st.booleans() | st.integers() | st.text(max_size=20),
        lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=10), inner, max_size=3),
        max_leaves=6,
    ).map(lambda value: json.dumps(value).encode()),
)
_MESSAGES = st.builds(
    lambda headers, payload, signature: cbor2.dumps(cbor2.CBORTag(18, [cbor2.dumps(headers), {}, payload, signature])),
    _HEADERS,
    _PAYLOADS,
    st.binary(min_size=96, max_size=96),
)

schemathesis.openapi.media_type("application/cose", st.one_of(st.binary(max_size=300), _MESSAGES))


@schemathesis.serializer("application/cose")
def serialize(context: object, value: object) -> bytes:
    return value if isinstance(value, bytes) else str(value).encode()
