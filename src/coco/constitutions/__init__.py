"""Constitutions that ship with Coco: rules in Starlark, to be put into a genesis or proposed.

A constitution defines three functions; each gets JSON-like values and returns one:

* ``validate(proposal, state)``: None, or why a proposal with these actions may not be made.
* ``resolve(proposal, votes, state)``: "Accepted", "Rejected" or "Open".
* ``apply(proposal, state)``: the effects of an accepted proposal: a list of actions of the framework's.

``proposal`` is ``{"proposer", "actions": [{"name", "args"}]}``; ``votes`` are booleans by member; ``state`` is what the
administrative ledger says: ``members`` (status, whether a recovery member, data), ``users``, ``nodes``, ``settings``.
"""

from __future__ import annotations

from importlib import resources

#: Names of the constitutions that ship.
NAMES = ("majority", "unanimous", "m-of-n", "operator", "sandbox")


def text(name: str) -> str:
    """The source of one.

    Raises:
        KeyError: there is none of that name.
    """
    if name not in NAMES:
        raise KeyError(name)
    return resources.files(__name__).joinpath(f"{name}.star").read_text()
