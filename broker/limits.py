"""Every bound of the broker, with its unit and its reason. Settings may lower or raise what an operator must own."""

from __future__ import annotations

from typing import Final

KIB: Final = 1024
MIB: Final = 1024 * KIB

# -- requests ----------------------------------------------------------------------------------------------------
BODY_BYTES_MAX: Final = 4 * MIB
"""One request body, decoded. A batch is one entry and stays below Kafka's usual `max.message.bytes` with our margin."""
BODY_READ_S: Final = 30.0
"""From the first part of a body to its last. A client on a slow line should send less at a time."""
ZSTD_WINDOW_LOG_MAX: Final = 23
"""Memory that one zstd body may make us hold, as a power of two: 8 MiB, what RFC 9659 lets every sender count on."""
CODING_MEMBERS_MAX: Final = 1_000
"""Gzip members or zstd frames in one part of a body: each costs as much as a kilobyte, and may be empty."""
BODY_DISCARD_BYTES_MAX: Final = 64 * MIB
BODY_DISCARD_S: Final = 5.0
"""A body that is too large is read on and thrown away within these, so that the client gets to read its 413."""
JSON_DEPTH_MAX: Final = 128
"""Nesting of a JSON record. Parsers of readers recurse too; theirs are often shallower than ours."""
PATH_BYTES_MAX: Final = 1024
"""A stream's path, decoded: it is part of every row's key."""
DECODED_PATHS_MAX: Final = 1_024
"""Paths that are not decoded, and not looked up among the routes, anew for each request. Every generation has some of
its own, which come and go; either costs some microseconds."""
PLAIN_HEAD_BYTES_MAX: Final = 1_024
"""The head of a request that is read without the parser. Longer ones carry what is rare: cookies, tokens of proxies."""
PLAIN_HEADS_MAX: Final = 1_024
"""Heads that are not read anew for each request: writers send the same ones again, but for a length or a number."""
ID_CHARS_MAX: Final = 128
"""Session, generation, message ids and lanes."""
HEADER_CHARS_MAX: Final = 256
"""Producer ids, Stream-Seq, content types: they are kept in rows."""
TTL_S_MAX: Final = 10 * 365 * 24 * 3600

# -- uploads -----------------------------------------------------------------------------------------------------
UPLOADS_MAX: Final = 10_000
"""Uploads in progress. Each has three tasks and up to two bodies in memory."""
UPLOAD_IN_FLIGHT_MAX: Final = 64
"""Batches of an upload proposed and not yet durable: as many as a generation keeps receipts of, so that a client which
lost its acks and repeats all of them is told where each landed."""
UPLOAD_IN_FLIGHT_BYTES_MAX: Final = 4 * MIB
"""Their bytes: one body's. Beyond either, nothing more is read from the socket."""
UPLOAD_GATHER_S: Final = 0.005
"""How long a token of an upload waits for others while there are many: a tenth of what a reader takes for at once."""
UPLOAD_GATHER_FROM: Final = 16
"""Tokens in such a time that are many: those of 64 answers. Fewer would hardly share a commit."""
FRAME_BYTES: Final = 4 * KIB
"""What a WebSocket frame may have around the body in it."""
UPLOAD_SILENCE_S: Final = 600.0
"""How long an upload may be silent, lines and frames that only say "still here" included: the longest lease."""
UPLOAD_WATCH_S: Final = 60.0
"""How often an idle upload looks after its generation when nothing wakes it."""
FINISH_S: Final = 30.0
"""How long a finish waits for batches that were answered with 202 before it."""
LOSSES_MAX: Final = 10_000
"""Generations of which it is remembered that a batch answered with 202 is lost. One that is forgotten has its gap."""
UPLOAD_STALL_S: Final = 30.0
"""How long a client may take nothing once its upload is over. Before, it may be one that writes all before it reads."""

# -- reads -------------------------------------------------------------------------------------------------------
READ_BYTES_MAX: Final = 1 * MIB
"""Data in one catch-up response or one SSE step: what one slow reader can hold in memory."""
COMPRESSED_BYTES_MIN: Final = 4 * KIB
"""A response that is smaller is sent as it is: it fits into a few packets."""
COMPRESSED_STEP_BYTES: Final = 32 * KIB
"""What is compressed on the event loop: well below a millisecond. More than that goes to another thread."""
COMPRESSING_MAX: Final = 2
"""Responses compressed beside the event loop at once; when there are more, they are sent as they are. A megabyte takes
2 ms of a core as zstd and some 20 as gzip, and threads are needed to write."""
LONG_POLL_S: Final = 30.0
TXID_WAIT_MS: Final = 5_000
"""How long somebody waits for a txid who does not say: what a user takes for "saving"."""
SSE_LIFE_S: Final = 60.0
"""The protocol wants SSE connections closed about every 60 s, so that caches can collapse new ones (section 5.8)."""
SSE_KEEPALIVE_S: Final = 15.0
"""A comment line when nothing happens: below the 30 s and 60 s idle timeouts of common proxies."""
SESSIONS_PAGE: Final = 50
SESSIONS_PAGE_MAX: Final = 500
"""Sessions in one page of the list, if nothing is said and at most: their rows are loaded for it."""
SESSIONS_CHANGED_MAX: Final = 10_000
"""Sessions of which it is remembered that they changed, for those who follow the list: a few seconds of a busy broker.
Who is further behind reads the list again."""
SESSIONS_ROUND_S: Final = 0.1
"""Pause of whoever follows the list: what changed meanwhile is told once. Recent sessions are to show within 0.5 s."""
SSE_STALL_S: Final = 30.0
"""Beyond the life of its connection, until a reader that takes nothing is cut off."""
LIVE_READERS_MAX: Final = 20_000
SSE_CACHE_BYTES: Final = 16 * MIB
"""Encoded events shared by readers: a few of the largest steps, or the newest events of thousands of live streams."""
UI_STREAM_LIFE_S: Final = 600.0
"""A connection that tells one answer. A reader that comes back is told all of it again, so longer than other reads; not
for ever, so that what holds no reader any more is noticed."""
UI_STREAM_READ_BYTES: Final = 64 * KIB
"""Records made events of in one step: a few milliseconds of the event loop."""
UI_STREAM_CACHE_BYTES: Final = 4 * MIB
"""Encoded steps of running answers, shared by the pages that show the same one."""
CURSOR_INTERVAL_S: Final = 20

# -- the server --------------------------------------------------------------------------------------------------
CONNECTIONS_MAX: Final = 2 * LIVE_READERS_MAX
"""Above every live reader, with as many again for writers and catch-up reads."""
BACKLOG: Final = 2048
"""Connections not yet accepted: those of a herd that comes back after a restart."""
CONNECTION_IDLE_S: Final = 75
"""Above the 60 s idle timeout of common proxies: whoever closes first should be the one that opened."""
DRAIN_S: Final = 10.0
"""From SIGTERM until what is still running is cut off, and what a log has not taken is left to it: above
BACK_PRESSURE_WAIT_S, below the 30 s of Kubernetes."""
STOP_STEP_S: Final = 1.0
"""What each step of a stop that waits for others has when DRAIN_S is used up: whoever answers does so in that time."""

BUFFER_GIVEN_BACK_BYTES: Final = 2 * MIB
"""Memory for buffers from this size on goes back to the system when it is freed: above READ_BYTES_MAX and what is
around it, so that reads need not wait for the system to clear new memory."""
FREE_KEPT_BYTES: Final = 16 * MIB
"""Free memory that stays with the broker: the buffers of a few reads at the same time."""

# -- the partition -----------------------------------------------------------------------------------------------
IN_FLIGHT_ENTRIES_MAX: Final = 10_000
"""Proposed and not yet applied."""
IN_FLIGHT_BYTES_MAX: Final = 64 * MIB
GATHER_TURNS_MAX: Final = 4
"""Turns of the event loop that a commit waits for more, as long as each brings some: well below a fsync together."""
GATHER_ENTRIES_MAX: Final = 128
"""Entries for which a commit waits no longer: what it costs is shared by many then, and a turn with so many is long."""
COMMIT_BYTES_MAX: Final = 8 * MIB
"""One commit: above one body, below what one fsync writes in some ten milliseconds."""
SEGMENT_BYTES: Final = 8 * MIB
"""One file of the journal, made once and written over: what an idle broker keeps on the disk, and a start reads."""
SEGMENT_SPARES_MAX: Final = 4
"""Segments kept for the next commits: what is written between two checkpoints under full load, about."""
CHECKPOINT_BYTES: Final = 16 * MIB
"""Applied data that starts a checkpoint."""
CHECKPOINT_BYTES_MAX: Final = 128 * MIB
"""Applied data not yet in the store, at which appends wait. A multiple of CHECKPOINT_BYTES, so that one checkpoint can
be written while the next fills."""
CHECKPOINT_INTERVAL_S: Final = 1.0
"""Bounds replay after a crash to about what one second wrote."""
CHECKPOINT_RESERVE_BYTES: Final = 4 * MIB
"""Heartbeat, stop and finish may exceed CHECKPOINT_BYTES_MAX by this much: back-pressure must not kill a living
generation."""
LET_GO_PAGES: Final = 512
"""Stored pages freed before others get a turn: a fifth of a millisecond."""
BACKGROUND_NICE: Final = 10
"""How far the store's threads stand back behind the event loop and the journal, where they share a core: they get a
tenth of it then. Not less: while one has the interpreter the others wait, however busy other programs keep the core."""
BACK_PRESSURE_WAIT_S: Final = 5.0
"""How long an append waits for room before it gets 503."""
WATCHED_PAGE: Final = 256
"""Rows to look after, read from the store at once."""
STREAMS_PAGE: Final = 1_000
"""Keys of streams, read from the store at once."""
ROWS_MAX: Final = 100_000
"""Clean rows kept in memory, as a cache."""
PAST_ROWS_MAX: Final = 1_000
"""Of these, rows of generations that have ended and of messages. With its 64 receipts one takes 10 KiB, and whoever
sends a batch again does so soon: what is older is read from the store when somebody asks."""
DOUBTFUL_PATHS_MAX: Final = 10_000
"""Paths of which the last entry changed nothing. Forgetting them costs a write to the journal each, and no more."""
PROPOSER_IDLE_MS: Final = 24 * 3600 * 1000
"""How long a silent proposer is remembered; its stragglers cannot live longer in any journal's client."""

# -- a cluster's journal -----------------------------------------------------------------------------------------
RECORD_BYTES: Final = 1 * MIB
"""Entries that wait share a record up to about this: above what one produce batch needs to be cheap, below what holds
everybody up behind it."""
RECORD_BYTES_MAX: Final = 6 * MIB
"""What the topic takes: one body of BODY_BYTES_MAX with the lengths and ids of its records, beside a record that was
not yet full."""
PLACES_MAX: Final = 65_536
"""Paths whose partition is remembered: looking it up costs less than hashing."""
CLUSTER_WAIT_S: Final = 15.0
"""From proposing an entry to an answer, of whatever kind: above the three to five seconds that losing a node of Kafka
takes, below the patience of HTTP clients."""
SETTLE_PAUSE_S_MIN: Final = 0.05
SETTLE_PAUSE_S_MAX: Final = 2.0
"""Between two tries to find out what became of a record."""
CATCH_UP_S: Final = 5.0
"""How long a read that finds nothing waits to have seen what others wrote before it."""
ASK_PAUSE_S: Final = 0.02
"""Between two records that are only written so that reads know what was before them: such reads share one, and a flood
of them does not fill the log."""
LAG_S_MAX: Final = 10.0
"""A node that is behind for so long is not ready: above what losing a node of Kafka takes, which all nodes notice at
the same time."""
FAILURE_TOLD_S: Final = 10.0
"""How long a node that has to begin anew says so before it ends: a health check or two, mostly a scrape of its metrics.
Until it is back the other nodes serve."""
AHEAD_RECORDS: Final = 64
"""Records that are decoded, and have their rows loaded, together: so many that one wait for the store does not matter,
so few that applying them holds up others of this process for milliseconds."""
AHEAD_BYTES: Final = 1 * MIB
"""As many at most, and the record that reaches it: they are in memory twice meanwhile."""
AUDIT_S: Final = 10.0
"""How often replicas of a partition that changes compare what they have made of it."""
DISPUTE_S: Final = 3.0
"""From an audit that does not agree until it is judged who is wrong: time for every node to say what it has, one that
is held up for a while too, and few acknowledgements of whoever is wrong."""
CHAINS_KEPT: Final = 8_192
"""Records behind the newest one that an audit may speak of: some seconds at full speed."""

# -- snapshots of partitions -------------------------------------------------------------------------------------
SNAPSHOT_LOG_BYTES: Final = 256 * MIB
"""Log behind the newest snapshot after which the next one is made: a node that begins with it reads so much, some
seconds' worth, and the log keeps between one and two of it."""
SNAPSHOT_LOG_SHARE: Final = 0.5
"""… and of the size of the store, so that copying it costs at most twice what writing it did."""
SNAPSHOTS_KEPT: Final = 2
"""Of each partition. The log goes back to the older one: the newer may be found damaged."""
SNAPSHOT_BYTES_PER_S: Final = 64.0 * MIB
"""To and from their place: half of a slow disk or network."""
SNAPSHOT_PIECE_BYTES: Final = 1 * MIB
SNAPSHOT_LOOK_S: Final = 1.0
"""How often it is looked whether one is due."""
SNAPSHOT_ANNOUNCE_S: Final = CLUSTER_WAIT_S
"""Between two announcements: one that is in the log has been read by then."""
SNAPSHOT_PATIENCE_S: Final = 10.0
"""Between two looks at what another node that has announced one has made."""
SNAPSHOT_TRIM_S: Final = 2.0
"""From what the log was found to have to its trim: below what an election takes, after which it may have less."""
SNAPSHOT_RETRY_S: Final = 60.0
"""After one that failed."""

# -- Kafka ---------------------------------------------------------------------------------------------------------
KAFKA_REQUEST_MS: Final = 5_000
"""After which a silent broker counts as lost: well above a slow one, and a frozen one stalls everybody for so long."""
KAFKA_START_S: Final = 3 * KAFKA_REQUEST_MS / 1000
"""For a client to connect: time to come to the third broker when two are silent."""
KAFKA_FETCH_WAIT_MS: Final = 200
"""How long a fetch waits for records. Partitions that are not in it wait behind it; and each that ends without any is
work for a node that has nothing to do."""
KAFKA_FETCH_PAUSE_MS: Final = 10
"""Between two fetches from a broker, unless somebody waits for what the next one brings: how much later than it could a
node sees what another one writes, at most, where records come more often than that."""
KAFKA_UNWATCHED_PAUSE_MS: Final = 40
"""The same while nobody at the node would be told: no live reader, no upload, nobody who follows the list of
sessions."""
KAFKA_METADATA_MS: Final = 15_000
"""How old the knowledge of who leads what may become without an error to correct it."""
KAFKA_FETCH_BYTES: Final = 16 * MIB
"""One fetch of all partitions that a broker leads: what a node that catches up holds in memory beside its backlog."""
KAFKA_BACKLOG_BYTES: Final = 32 * MIB
"""Read from one partition and not yet applied: above the largest fetch, then the partition is paused."""
KAFKA_STALL_S: Final = 8.0
"""Records are known to be there and none comes, or no question is answered, for so long: the client is made anew. Above
KAFKA_REQUEST_MS, after which it helps itself."""
KAFKA_DOUBT_S: Final = 5.0
"""For how long a leader must say that it has less than was read before, until what was read counts as lost: one that
was frozen learns within a heartbeat or two (their default is 2 s) that it leads no more."""
KAFKA_REPLICAS: Final = 3
"""Of a topic that is made here; fewer where there are fewer brokers."""

# -- streams and sessions ----------------------------------------------------------------------------------------
PRODUCERS_MAX: Final = 10_000
"""Idempotent producers of one stream."""
PRODUCER_IDLE_MS: Final = 7 * 24 * 3600 * 1000
"""A producer idle for so long makes room for another, where a stream has too many (PROTOCOL.md 5.2.1 recommends it)."""
FORKS_MAX: Final = 1_000
"""Forks of one stream: they share its row."""
FORK_MS_MAX: Final = 30_000
"""How long making a fork may take, in the partition's time. What is not there by then never will be."""
FORK_IDS_MAX: Final = 10_000
"""Messages and generations before the fork position of a session: their ids travel in one entry, some hundred bytes
each, and are taken over in one step."""
DETACH_S: Final = 1.0
"""How long a delete or a reset waits for live readers to have left: they are woken at once, and most need one turn."""
UNUSED_SESSION_S: Final = 7.0 * 24 * 3600
"""How long a session that nobody uses is kept: longer than a tab stays open over a weekend before its first message."""
GENERATIONS_OPEN_MAX: Final = 64
"""Open generations of one session: they share its row."""
LANES_MAX: Final = 256
"""Lanes of one session: they share its row."""
BATCH_RECORDS_MAX: Final = 65_536
"""Records of one batch: what the event loop cuts in some 50 ms. A body of bare digits would else hold two million."""
BATCH_CHUNKS_MAX: Final = 10_000
"""Chunks in one batch. Each becomes a record with its ids, some hundred bytes: a body of bare digits would else become
fifty times as much, in one step that holds everybody up."""
LEASE_MS_MIN: Final = 1_000
LEASE_MS_MAX: Final = 600_000
LEASE_MS: Final = 30_000
SUBSCRIPTIONS_MAX: Final = 1_000
"""Every append to a new path is held against all their patterns."""
LINKS_MAX: Final = 1_000
"""Streams of one subscription: they share its row, and one webhook names them all."""
PATTERN_CHARS_MAX: Final = 1_024
"""As long as a path: see PATH_BYTES_MAX."""
URL_CHARS_MAX: Final = 2_048
DESCRIPTION_CHARS_MAX: Final = 1_024
SUBSCRIPTION_LEASE_MS_MIN: Final = 1_000
SUBSCRIPTION_LEASE_MS_MAX: Final = 600_000
SUBSCRIPTION_LEASE_MS: Final = 30_000
"""These three are the protocol's (section 6.2)."""
TOKEN_MS: Final = 24 * 3600 * 1000
"""Life of a callback or claim token. It is the generation that fences; this only keeps old logs from being keys."""
LIVE_SESSIONS_MAX: Final = 2_000
"""Sessions whose folded messages stay in memory; any other is folded from its snapshot when somebody asks."""
LIVE_SESSION_BYTES_MAX: Final = 256 * MIB
"""What their messages take together, about; the one in use may exceed it alone."""
WHOLE_SESSION_S: Final = 60.0
"""How long after somebody asked for a session's messages all of them stay in memory, for the next who asks. Of one that
is only written, what has ended lies in the store: else it would take more memory with each answer."""
MESSAGES_PAGE_MAX: Final = 1_000
"""Messages that a client may ask for at once when it asks for pages."""
MESSAGES_STEP_BYTES: Final = 256 * KIB
"""Messages encoded for an answer before others get a turn: about a millisecond. Without `limit`, a list is all."""
SNAPSHOT_STEP_BYTES: Final = 256 * KIB
"""Messages encoded for the store before other threads get a turn: below a millisecond."""
SNAPSHOT_ROUND_BYTES: Final = 32 * MIB
"""Snapshots in one checkpoint: it must not wait for long, for appends may wait for it."""
PAST_FOLDS_MAX: Final = 4
"""Sessions folded at once as they were at an earlier offset; as many again wait, then 503. Each can cost as much as its
longest answer."""
PAST_FOLDS_KEPT_MAX: Final = 16
"""Of these, kept for whoever reads on from there: the next page, or a bit later."""

# -- webhooks ----------------------------------------------------------------------------------------------------
WEBHOOKS_MAX: Final = 64
"""Deliveries under way. A receiver that hangs has one of them for WEBHOOK_S."""
WEBHOOK_S: Final = 10.0
"""From the look-up of the receiver's name to the end of its answer."""
WEBHOOK_ANSWER_BYTES_MAX: Final = 64 * KIB
"""What is read of an answer: one small object is all that means anything."""
RESOLVE_S: Final = 2.0
"""How long a new subscription waits to learn where its webhook's name points to."""
RETRY_MS_MIN: Final = 1_000
RETRY_MS_MAX: Final = 60_000
RETRY_JITTER: Final = 0.2
"""These three are the protocol's (section 7.1)."""
WAKES_MAX: Final = 64
"""Subscriptions attended to at once: as many entries share a commit."""

# -- pages -------------------------------------------------------------------------------------------------------
PAGE_BYTES: Final = 256 * KIB
"""Pages are merged up to about this: large enough to read in sequence, small enough to cut for a resuming reader."""
