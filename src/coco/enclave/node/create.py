"""A node founds a service: the first entry of a ledger."""

from __future__ import annotations

from typing import Final

from coco import _native
from coco.configuration.genesis import Genesis
from coco.configuration.share_holders import share_holders
from coco.enclave.adapters.contract import BlockContext, mounts
from coco.enclave.node.founding import check_platform, check_policy, found, make_founder, service_row
from coco.enclave.node.ground import Ground
from coco.enclave.node.parts import Parts
from coco.enclave.node.states import State
from coco.enclave.ordering.registry import version_rows
from coco.ledger import tables

_FIRST_VIEW: Final = 2
#: Engine id of the node that founds a service; ids are never used again in it.
_FOUNDER: Final = 1


async def create(ground: Ground) -> Parts:
    """Found the service that the host's genesis document describes; its first entry is signed and committed.

    Raises:
        CocoError: the genesis is malformed, or does not accept this platform.
    """
    document = ground.start.genesis
    genesis = Genesis.parse(document)
    genesis.check_founding()
    check_platform(ground, genesis)
    founder = await make_founder(ground, _FOUNDER)
    secret = _native.LedgerSecret.generate(document)
    await found(ground, _FOUNDER, _FIRST_VIEW)
    ground.journal.begin(view=ground.replica.view, secret=secret)
    parts = Parts(ground, ground.new_store(), document, founder.identities)
    parts.declare_adapters()
    parts.registry.check_clashes()
    transaction = parts.store.begin()
    for table, key, value in (*genesis.rows(document), *founder.rows(ground, ground.journal.last_seqno + 1)):
        transaction.put(table, key, value)
    check_policy(ground, transaction)
    transaction.put(tables.SERVICE_INFO, tables.SINGLETON, service_row(parts.service, State.OPENING, 0))
    context = BlockContext(ground.clock.now_ms, bytes(32), bytes(32), 1)
    for name, founded_with in genesis.adapters.items():
        adapter = parts.registry.by_name[name]
        adapter.genesis(mounts.own_settings(founded_with), transaction, context)
        for table, key, value in parts.first_rows(adapter.manifest(), transaction):
            transaction.put(table, key, value)
    for runtime in parts.sequencer.runtimes:
        for version in version_rows(runtime.manifest):
            transaction.put(*version)
    for table, key, row in parts.epochs.found(share_holders(transaction), ground.clock.now_ms):
        transaction.put(table, key, row or b"")
    writes = transaction.native.write_set()
    seqno = parts.store.write(writes)
    for adapter in parts.registry.by_name.values():
        await adapter.applied(parts.journal.position(seqno), writes)
    await parts.sequencer.committed(await parts.sequencer.sign())
    return parts
