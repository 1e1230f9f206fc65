"""The tables of `store.sqlite`.

    head               one row: the file's uuid, and `Head`
    row                the state's rows as `state.encode_row` has them; beside the value what is searched for: the life
                       that it goes with, when it is overdue (streams), whether somebody must look after it unasked,
                       when it was last active (sessions)
    page               see `page_row`; `bytes` counts data only
    snapshot           where a session's snapshot stands …
    snapshot_message   … and its messages. An incarnation is unique, so it is the key
    garbage            lives that are over and not yet swept; rows up to the key `swept` are done

What may change: columns with a default, at the end; new tables and indexes. Anything else is a new FORM.version.
"""

from __future__ import annotations

from typing import Final

from broker.sqlite import Form

FORM: Final = Form(
    application_id=0x53465354,  # "SFST"
    version=1,
    schema=(
        """CREATE TABLE head (id INTEGER PRIMARY KEY CHECK (id = 1), uuid BLOB NOT NULL,
        applied_index INTEGER NOT NULL, time_ms INTEGER NOT NULL, mark BLOB NOT NULL)""",
        """CREATE TABLE row (key BLOB PRIMARY KEY, owner INTEGER NOT NULL, deadline_ms INTEGER,
        is_watched INTEGER NOT NULL, value BLOB NOT NULL, active_ms INTEGER) WITHOUT ROWID""",
        "CREATE INDEX deadline ON row (deadline_ms, key, owner) WHERE deadline_ms IS NOT NULL",
        "CREATE INDEX watched ON row (key) WHERE is_watched",
        "CREATE INDEX active ON row (active_ms, key) WHERE active_ms IS NOT NULL",
        """CREATE TABLE page (id INTEGER PRIMARY KEY, incarnation INTEGER NOT NULL, start INTEGER NOT NULL,
        "end" INTEGER NOT NULL, bytes INTEGER NOT NULL, data BLOB NOT NULL)""",
        'CREATE UNIQUE INDEX page_start ON page (incarnation, start, "end", bytes)',
        """CREATE TABLE snapshot (path TEXT PRIMARY KEY, incarnation INTEGER NOT NULL, position INTEGER NOT NULL)
        WITHOUT ROWID""",
        """CREATE TABLE snapshot_message (id INTEGER PRIMARY KEY, incarnation INTEGER NOT NULL,
        ordinal INTEGER NOT NULL, message_id TEXT NOT NULL, data BLOB NOT NULL, UNIQUE (incarnation, ordinal))""",
        """CREATE TABLE garbage (path TEXT NOT NULL, life INTEGER NOT NULL, swept BLOB NOT NULL,
        PRIMARY KEY (path, life)) WITHOUT ROWID""",
    ),
)
