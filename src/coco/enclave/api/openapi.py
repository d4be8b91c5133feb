"""The administration listener in OpenAPI 3.1: served by every node, so that tools know what they talk to.

A test holds it equal to the routes that there are.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Any

API_VERSION = "2024-07-01"
_ID = {"type": "string", "pattern": "^[0-9a-f]{64}$", "minLength": 64, "maxLength": 64}
_POSITION = {"type": "string", "pattern": "^[0-9]{1,18}[.][0-9]{1,18}$"}


@dataclass(frozen=True)
class Operation:
    """One route: what it does, what it takes, what it gives."""

    summary: str
    #: Type of the body: ``application/cose``, ``application/json``, or none.
    body: str = ""
    #: Schema of each query parameter, by name.
    query: tuple[tuple[str, dict[str, Any]], ...] = ()
    answer: str = "application/json"
    #: Whether it is one of the versioned routes of the open format.
    versioned: bool = False


def _gov(summary: str, body: str = "", answer: str = "application/json") -> Operation:
    return Operation(summary, body, answer=answer, versioned=True)


#: A list comes in pages: how many rows of it are looked at, and behind which key, as a ``nextLink`` says.
_PAGE: tuple[tuple[str, dict[str, Any]], ...] = (
    ("top", {"type": "string", "pattern": "^[1-9][0-9]{0,8}$"}),
    ("after", {"type": "string", "maxLength": 256}),
)


def _gov_list(summary: str) -> Operation:
    return Operation(summary, query=_PAGE, versioned=True)


_COSE, _JSON = "application/cose", "application/json"
_PROPOSALS = "/gov/members/proposals"
OPERATIONS: dict[tuple[str, str], Operation] = {
    ("GET", "/openapi.json"): Operation("This document"),
    ("GET", "/node/info"): Operation("What this node is, says and lacks"),
    ("GET", "/node/health"): Operation("Whether the service is open and somebody leads: 200, else 503"),
    ("GET", "/node/attestation"): Operation(
        "Evidence for a nonce", query=(("nonce", {"type": "string", "pattern": "^([0-9a-f]{2}){0,64}$"}),)
    ),
    ("GET", "/node/network"): Operation("The network and its nodes"),
    ("GET", "/node/commit"): Operation("The newest committed transaction id"),
    ("GET", "/node/tx"): Operation(
        "What became of an entry, by its transaction id",
        query=(("id", _POSITION),),
    ),
    ("GET", "/node/receipt"): Operation("Proof that a transaction is in the ledger", query=(("id", _POSITION),)),
    ("GET", "/node/service/identities"): Operation("Members' statements about former identities of the service"),
    ("GET", "/node/service/keys"): Operation("Certificates of the keys that adapters sign with"),
    ("POST", "/node/retire"): Operation("An operator's statement that a node leaves", _COSE),
    ("GET", "/gov/recovery"): Operation("What members need to know to recover the service"),
    ("GET", "/gov/recovery/encrypted-shares/{member}"): Operation("A member's share, encrypted to the member"),
    ("POST", "/gov/recovery/statements"): Operation("A member's statement that the service continues another", _COSE),
    ("POST", "/gov/recovery/members/{member}:recover"): Operation("A member's share", _COSE),
    ("GET", _PROPOSALS): _gov_list("Open proposals"),
    ("GET", _PROPOSALS + "/{proposal}"): _gov("A proposal, open or not"),
    ("GET", _PROPOSALS + "/{proposal}/actions"): _gov("What a proposal does"),
    ("GET", _PROPOSALS + "/{proposal}/ballots/{member}"): _gov("How a member voted"),
    ("POST", _PROPOSALS + ":create"): _gov("Propose", _COSE),
    ("POST", _PROPOSALS + ":rehearse"): _gov("What actions would change; nothing is written", _JSON),
    ("POST", _PROPOSALS + "/{proposal}:withdraw"): _gov("Take a proposal of one's own back", _COSE),
    ("POST", _PROPOSALS + "/{proposal}/ballots/{member}:submit"): _gov("Vote", _COSE),
    ("GET", "/gov/members/state-digests/{member}"): _gov("The state that a member is to acknowledge"),
    ("POST", "/gov/members/state-digests/{member}:update"): _gov("Ask for the state to acknowledge", _COSE),
    ("POST", "/gov/members/state-digests/{member}:ack"): _gov("Acknowledge the state", _COSE),
    ("GET", "/gov/service/info"): _gov("The service and its settings"),
    ("GET", "/gov/service/constitution"): _gov("The rules in force", answer="text/plain"),
    ("GET", "/gov/service/state"): _gov("What the rules see"),
    ("GET", "/gov/service/members"): _gov_list("Every member"),
    ("GET", "/gov/service/members/{member}"): _gov("One member"),
    ("GET", "/gov/service/nodes"): _gov_list("Every node"),
    ("GET", "/gov/service/nodes/{node}"): _gov("One node"),
    ("GET", "/gov/service/succession"): _gov("How far the service is on its way to another identity"),
    ("POST", "/gov/service/succession/statements"): _gov("A member's statement that the new one continues it", _COSE),
    ("GET", "/gov/service/join-policy"): _gov("Which code on which platforms may join"),
    ("GET", "/gov/service/transactions/commit"): _gov("The newest committed transaction id"),
    ("GET", "/gov/service/transactions/{position}"): _gov("Status of a transaction"),
}


def document() -> dict[str, Any]:
    """The OpenAPI document."""
    paths: dict[str, Any] = {}
    for (method, path), operation in OPERATIONS.items():
        paths.setdefault(path, {})[method.lower()] = _operation(path, operation)
    error = {
        "type": "object",
        "required": ["error"],
        "properties": {
            "error": {
                "type": "object",
                "required": ["code", "message"],
                "properties": {name: {"type": "string"} for name in ("code", "message", "hint")},
            }
        },
    }
    return {
        "openapi": "3.1.0",
        "info": {"title": "Coco node, administration", "version": API_VERSION, "license": {"name": "Apache-2.0"}},
        "paths": paths,
        "components": {"schemas": {"Error": error}},
    }


def _operation(path: str, operation: Operation) -> dict[str, Any]:
    parameters = [
        {"name": name, "in": "path", "required": True, "schema": _POSITION if name == "position" else _ID}
        for name in re.findall(r"{(\w+)}", path)
    ]
    parameters += [{"name": name, "in": "query", "schema": schema} for name, schema in operation.query]
    if operation.versioned:
        version = {"type": "string", "enum": [API_VERSION]}
        parameters.append({"name": "api-version", "in": "query", "required": True, "schema": version})
    refused = {"description": "refused", "content": {_JSON: {"schema": {"$ref": "#/components/schemas/Error"}}}}
    found: dict[str, Any] = {
        "summary": operation.summary,
        "parameters": parameters,
        "responses": {
            "200": {"description": "done", "content": {operation.answer: {}}},
            "204": {"description": "done"},
            "4XX": refused,
            "429": _LATER,
            "503": refused,
        },
    }
    if operation.body:
        schema = {"type": "string", "format": "binary"} if operation.body == _COSE else _PROPOSAL
        found["requestBody"] = {"required": True, "content": {operation.body: {"schema": schema}}}
    return found


_LATER = {
    "description": "the caller's budget is spent",
    "headers": {"retry-after": {"schema": {"type": "string"}, "description": "seconds"}},
    "content": {_JSON: {"schema": {"$ref": "#/components/schemas/Error"}}},
}
_ACTION = {
    "type": "object",
    "required": ["name"],
    "properties": {"name": {"type": "string"}, "args": {"type": "object"}},
}
_PROPOSAL = {
    "type": "object",
    "required": ["actions"],
    "properties": {"actions": {"type": "array", "items": _ACTION, "maxItems": 100}},
}
