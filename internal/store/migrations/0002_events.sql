-- The journal. Rows stay when their VM goes; AUTOINCREMENT keeps the number of a pruned row from being given again.
CREATE TABLE events (
    sequence     INTEGER PRIMARY KEY AUTOINCREMENT,
    at           INTEGER NOT NULL,          -- nanoseconds since 1970, UTC
    kind         TEXT NOT NULL,
    vm_id        TEXT NOT NULL,
    vm_name      TEXT NOT NULL,
    detail       TEXT NOT NULL,
    operation_id TEXT NOT NULL
) STRICT;
