"""Named limits: everything that can grow has one, and both sides of a boundary check it."""

from __future__ import annotations

from typing import Final

KIB: Final = 1024
MIB: Final = 1024 * KIB

#: Hard limit of one ledger entry, on channel, engine, peer link and disk.
ENTRY_BYTES_MAX: Final = 16 * MIB
#: One message between host and enclave: an entry or a part of a snapshot, and its frame.
MESSAGE_BYTES_MAX: Final = ENTRY_BYTES_MAX + 2 * MIB + 64 * KIB
#: Bytes that the enclave may have under way to the host before it stops executing.
APPENDING_BYTES_MAX: Final = 64 * MIB
#: Bytes of one reply to a read, unless its first entry alone is larger; and entries of it.
READ_BYTES_SOFT: Final = 8 * MIB
READ_ENTRIES_MAX: Final = 4096
#: Log rows of which memory keeps only the place before they are spilled to the host as a sealed run.
INDEX_ROWS_COLD_MAX: Final = 65_536
#: One sealed block of such a run.
INDEX_BLOCK_BYTES_MAX: Final = 64 * KIB
#: Blocks of one message.
INDEX_BLOCKS_MAX: Final = 64
#: A part of a snapshot is cut when it has so many bytes; its last row may make it longer.
SNAPSHOT_PART_BYTES_MIN: Final = MIB
SNAPSHOT_PART_BYTES_MAX: Final = ENTRY_BYTES_MAX + 2 * MIB
#: Parts of one snapshot.
SNAPSHOT_PARTS_MAX: Final = 1 << 20
#: Soft limit of the transactions of one batch.
BATCH_BYTES_SOFT: Final = 128 * KIB
#: Transactions of one batch.
BATCH_TRANSACTIONS_MAX: Final = 2000
#: How often a batch that ran on a snapshot runs again because what it has read has changed; then it is put back.
BATCH_CONFLICTS_MAX: Final = 8
#: Parts of a composite transaction.
COMPOSITE_PARTS_MAX: Final = 16
#: Memory that one call of the extension may take, whose work clients choose: a block, a query, a check, a request.
CALL_MEMORY_BYTES_MAX: Final = 256 * MIB
#: Kept for what must not fail when there is no memory left: several of the largest entries.
SPARE_MEMORY_BYTES: Final = 64 * MIB
#: Entries after which a signature is due at once.
UNSIGNED_ENTRIES_MAX: Final = 100

#: Nodes of a network.
NODES_MAX: Final = 25
#: Larger entries go to the backups in pieces, so that heartbeats and votes never wait long behind one.
PIECE_BYTES_MAX: Final = 256 * KIB
#: Entries in one message between nodes, in bytes; and such messages under way to one backup.
APPEND_BYTES_MAX: Final = MIB
APPENDS_INFLIGHT_MAX: Final = 64
#: Proposed and not yet committed, in bytes.
UNCOMMITTED_BYTES_MAX: Final = 256 * MIB
#: One message between nodes: entries, or one piece, and their frame.
PEER_MESSAGE_BYTES_MAX: Final = APPEND_BYTES_MAX + 64 * KIB
#: Entries that a primary keeps in memory for backups that are behind; others get a snapshot.
LOG_BYTES_MAX: Final = 64 * MIB
#: The same where there is no backup.
LOG_ALONE_BYTES_MAX: Final = 4 * MIB

#: One HTTP request body.
BODY_BYTES_MAX: Final = 5 * MIB
#: Request line and headers of one request.
HEAD_BYTES_MAX: Final = 32 * KIB
#: Names and values of the headers that an adapter adds to a reply.
REPLY_HEADERS_BYTES_MAX: Final = 8 * KIB
#: Events that wait for one client that reads slowly.
EVENTS_WAITING_MAX: Final = 1_000
#: Bodies that all connections may hold at once.
BODIES_BYTES_MAX: Final = 256 * MIB
#: The same for connections of strangers.
ANONYMOUS_BODIES_BYTES_MAX: Final = 32 * MIB
#: Replies that all connections may hold at once; beyond that the one that holds the most is cut.
REPLIES_BYTES_MAX: Final = 128 * MIB
#: Connections of one listener; those of strangers, and those whose handshake is not done: beyond these two, the one
#: that was quiet longest makes place.
CONNECTIONS_MAX: Final = 12_000
STRANGERS_MAX: Final = 4_000
HANDSHAKES_MAX: Final = 2_000
#: Time of a listener's thread, of one core, that new connections of whoever has shown no certificate of an actor may
#: take, and as much that what they send may take before it is a request: so much a second, and at most so much at once.
STRANGERS_DOOR_US_PER_SECOND: Final = 150_000
STRANGERS_DOOR_US_MAX: Final = 150_000
#: Reads of one connection that carry fewer bytes and get no answer: at once; and the time in which one more is earned,
#: for which nothing is read of it once there were too many.
CRUMB_BYTES: Final = 512
CRUMBS_MAX: Final = 100
CRUMB_REST_MS: Final = 50
CRUMBS: Final = (CRUMB_BYTES, CRUMBS_MAX, CRUMB_REST_MS)
#: Time that a TLS handshake may take, from the first byte of its connection.
HANDSHAKE_SECONDS_MAX: Final = 10
#: Time from the first byte of a request to its last.
REQUEST_SECONDS_MAX: Final = 30
#: Time that a connection may stay open without a request.
IDLE_SECONDS_MAX: Final = 600
#: Calls of one JSON-RPC batch.
RPC_BATCH_MAX: Final = 1000
#: Bytes that wait for a slow reader before it gets no more, and before its connection is cut.
REPLY_BYTES_SOFT: Final = 256 * KIB
REPLY_BYTES_MAX: Final = 64 * MIB
#: Time that a client has to read the last reply of a connection that the node ends.
LINGER_SECONDS_MAX: Final = 2

#: Local connections of ``coco connect``.
CONNECT_CONNECTIONS_MAX: Final = 512
#: Bytes that ``coco connect`` holds of requests and replies, beyond what each may have in any case.
CONNECT_BYTES_MAX: Final = 96 * MIB
CONNECT_FREE_BYTES: Final = 64 * KIB
#: Time that a node has to answer a request, which may wait for commit before that.
ANSWER_SECONDS_MAX: Final = 45
#: Time after which a node that has not answered is asked whether it is there at all; and time that it has to say so.
ANSWER_SECONDS_PATIENT: Final = 2
ALIVE_SECONDS_MAX: Final = 5

#: Accounts that are recorded of one participant.
ACCOUNTS_MAX: Final = 1_000
#: Bytes of an identity of a protocol: an account, a key, a certificate.
IDENTITY_BYTES_MAX: Final = 2048

#: What callers may cost at the front door (``enclave/api/budget.py``). Work is counted in microseconds of the
#: event loop that a request is known to take: so much a second, and at most so much at once. All who show no
#: certificate of an actor share one budget.
ANONYMOUS_WORK_US_PER_SECOND: Final = 150_000
ANONYMOUS_WORK_US_MAX: Final = 600_000
ACTOR_WORK_US_PER_SECOND: Final = 500_000
ACTOR_WORK_US_MAX: Final = 1_000_000
#: The same for requests that a member or an operator has signed, so that no stranger's reading keeps them out: their
#: signatures are checked.
SIGNED_WORK_US_PER_SECOND: Final = 100_000
SIGNED_WORK_US_MAX: Final = 500_000
#: Part of the event loop's time that the calls of one caller take at most, whatever it has saved; more than a budget
#: gives in a second, so that what is paid for does not wait for ever.
CALLER_WORK_PART: Final = 0.6
#: How long a request may wait for its caller's budget; whoever would wait longer is refused, but not at once: nothing
#: is gained by asking again.
ANONYMOUS_PATIENCE_SECONDS_MAX: Final = 1
ACTOR_PATIENCE_SECONDS_MAX: Final = 5
REFUSAL_SECONDS: Final = 1
#: Refusals that strangers are told of in a second; the others wait for theirs.
REFUSALS_PER_SECOND_MAX: Final = 200
#: Callers whose spending is remembered.
BUDGETS_MAX: Final = 12_000
#: Bytes of answers that are being made: of all strangers, of one actor, of all.
ANONYMOUS_ANSWERS_BYTES_MAX: Final = 16 * MIB
ACTOR_ANSWERS_BYTES_MAX: Final = 64 * MIB
ANSWERS_BYTES_MAX: Final = 128 * MIB
#: The answer of one JSON-RPC body; calls of a batch beyond it are refused.
RPC_ANSWER_BYTES_MAX: Final = 32 * MIB
ANONYMOUS_RPC_ANSWER_BYTES_MAX: Final = 8 * MIB
#: One body of a caller who has shown no certificate of an actor, where none is needed to be believed.
ANONYMOUS_BODY_BYTES_MAX: Final = 256 * KIB
#: Calls of one batch that run at the same time, but for submissions.
RPC_BATCH_RUNNING_MAX: Final = 4
#: Frames of a WebSocket that carry nothing (ping, pong, empty, cut small): at once, and a second.
IDLE_FRAMES_MAX: Final = 100
IDLE_FRAMES_PER_SECOND: Final = 20
#: A frame that is not the last of its message and has fewer bytes carries nothing.
FRAGMENT_BYTES_MIN: Final = 512

#: Rows that one page of a governance list looks at.
PAGE_ROWS_MAX: Final = 100
#: Blocks times percentiles of one answer about fees: more percentiles, fewer blocks.
FEE_HISTORY_CELLS_MAX: Final = 8_192
FEE_HISTORY_BLOCKS_MAX: Final = 1_024

#: Transactions of a pool, and of one lane (an account) in it.
POOL_TRANSACTIONS_MAX: Final = 50_000
POOL_BYTES_MAX: Final = 128 * MIB
POOL_LANE_MAX: Final = 2_000
#: The same of what one actor handed in, so that there is room for others.
POOL_ACTOR_TRANSACTIONS_MAX: Final = POOL_TRANSACTIONS_MAX // 2
POOL_ACTOR_BYTES_MAX: Final = POOL_BYTES_MAX // 2
#: Time of the writer that an actor may owe before it lets others go first, and time for which somebody who handed a
#: transaction in counts as one of those others.
POOL_DEBT_MS_MAX: Final = 25
POOL_COMPANY_MS: Final = 1_000
#: Least time that the execution of a batch may take before what is left of it waits for the next one.
BATCH_TARGET_MS_MIN: Final = 20
#: Time after which a transaction that could not run leaves the pool.
POOL_SECONDS_MAX: Final = 3 * 3600

#: Threads for queries; twice as many as cores, if that is more. One actor has at most half of them.
QUERY_THREADS_MIN: Final = 4
#: Queries of one actor that wait for a thread.
QUERIES_WAITING_MAX: Final = 4_096
#: Parts of submissions that are checked, or queued to be, on the thread that does nothing else.
CHECKS_MAX: Final = 8

#: Readable history: at least this many application entries *and* this much time.
HISTORY_ENTRIES_MIN: Final = 128
HISTORY_SECONDS_MIN: Final = 600
#: Blocks that one log query may cover, and logs that it may return.
LOGS_BLOCKS_MAX: Final = 10_000
LOGS_MAX: Final = 10_000
#: Bytes of the logs that one query may return, about.
LOGS_BYTES_MAX: Final = 16 * MIB
#: Filters and subscriptions of one node, of one actor, and of all strangers; and their life without a poll.
FILTERS_MAX: Final = 10_000
ACTOR_FILTERS_MAX: Final = 1_000
ANONYMOUS_FILTERS_MAX: Final = 500
ACTOR_SUBSCRIPTIONS_MAX: Final = 1_000
ANONYMOUS_SUBSCRIPTIONS_MAX: Final = 64
FILTER_SECONDS_MAX: Final = 300
#: Requests that a listener answers after a majority confirmed what this node knows, and before it must again.
ANSWERS_PER_ROUND_MAX: Final = 2_000
#: Time that a linearizable read may wait for a majority; and a question for another node's answer.
READ_INDEX_SECONDS_MAX: Final = 5
PEER_SECONDS_MAX: Final = 5
#: Bytes that wait for a peer before its link is cut; the engine sends again.
PEER_UNSENT_BYTES_MAX: Final = 128 * MIB
#: Links of a node, from peers and from strangers that ask to join, those of strangers, and those whose handshake is not
#: done, so that there is room for peers; and questions of one that wait for their answer.
PEER_LINKS_MAX: Final = 256
PEER_STRANGERS_MAX: Final = 128
PEER_HANDSHAKES_MAX: Final = 64
PEER_QUESTIONS_MAX: Final = 256
#: Time that a stranger may keep a link.
STRANGER_SECONDS_MAX: Final = 30
#: Nodes that are trusted by their operator's word alone at one address, in ten minutes; a person must wait after that.
ADMISSIONS_MAX: Final = 30
ADMISSIONS_SECONDS: Final = 600
#: Time without a primary after which a majority of the voters is taken to be lost; an election takes a second or two.
MAJORITY_LOST_SECONDS: Final = 10
#: Time for which a joiner asks when nobody answers.
JOIN_SECONDS_MAX: Final = 30
#: Who may wait for fresh evidence of a node, whose platform gives a few in a second.
EVIDENCE_WAITING_MAX: Final = 16
#: What a host may say of its platform; Intel's collateral is the largest.
ENDORSEMENTS_BYTES_MAX: Final = 256 * 1024
#: Joiners whom governance has not decided about.
PENDING_NODES_MAX: Final = 16
#: Ids of transactions that are remembered, so that what is sent again after a failover runs once.
INCLUDED_IDS_MAX: Final = 200_000
#: Primaries that may end while they execute a transaction before it is taken for the reason of their end.
PRIMARIES_OUTLIVED_MAX: Final = 4
#: Time for which what one primary died with waits until the network could lose the next one too.
SUSPECT_SECONDS_MAX: Final = 10
#: Ids of transactions that were refused or expired, and whose reason is remembered.
DROPPED_IDS_MAX: Final = 20_000
#: Time that a request may wait for commit.
COMMIT_SECONDS_MAX: Final = 30

#: One message to or from an external processor; what may wait to be read, or be sent before it says something.
EXTERNAL_BYTES_MAX: Final = MIB
EXTERNAL_UNREAD_MAX: Final = 256
EXTERNAL_UNREAD_BYTES_MAX: Final = 4 * MIB
#: Sessions with external processors at a time; messages, bytes and time of one, and time of one answer.
EXTERNAL_SESSIONS_MAX: Final = 64
EXTERNAL_SESSION_MESSAGES_MAX: Final = 10_000
EXTERNAL_SESSION_BYTES_MAX: Final = 64 * MIB
EXTERNAL_SESSION_SECONDS_MAX: Final = 60
EXTERNAL_SECONDS_MAX: Final = 10

#: One message to or from a child process of an adapter; and questions that may wait for one child.
CHILD_BYTES_MAX: Final = 16 * MIB
CHILD_QUESTIONS_MAX: Final = 64
#: Certificates of one key of an adapter that are kept.
KEY_CERTIFICATES_MAX: Final = 64
#: Children that the factories of one enclave declare.
CHILDREN_MAX: Final = 16

#: Latest time that a host can say, in milliseconds since the Unix epoch: the year 2200. No certificate's end overflows.
TIME_MS_MAX: Final = 7_258_118_400_000
#: How far apart two times in a ledger may lie, though they came in the other order: one was read before it was written.
AUDIT_SKEW_SECONDS: Final = 600

#: Furthest that the enclave's time follows the host's in one tick of a second.
TIME_STEP_MS_MAX: Final = 60_000
#: How much faster than it passes the time of a node goes, for each tick, while a majority has not been heard of.
TIME_STEP_ALONE_MS: Final = 1_000
#: Time for which what another node's host said of the time counts.
TIME_SAID_SECONDS_MAX: Final = 10

#: Actions of one proposal.
PROPOSAL_ACTIONS_MAX: Final = 100
#: Proposals of one member that may be open at once.
OPEN_PROPOSALS_MAX: Final = 20
#: How far a member's message may be behind the time of the node that takes it, for what is signed offline; and ahead.
MESSAGE_AGE_SECONDS_MAX: Final = 7 * 24 * 3600
MESSAGE_AHEAD_SECONDS_MAX: Final = 3600

#: After so long leaves the answer about a transaction that is hidden or not there, whichever it is.
HIDDEN_ANSWER_S: Final = 0.01
