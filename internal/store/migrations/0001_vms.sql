CREATE TABLE vms (
    id           TEXT PRIMARY KEY,
    name         TEXT NOT NULL,
    spec         TEXT NOT NULL,             -- microvm.Spec as JSON
    image_digest TEXT NOT NULL,
    state        TEXT NOT NULL,
    cause        TEXT NOT NULL DEFAULT '',
    ephemeral    INTEGER NOT NULL DEFAULT 0,
    boot_id      TEXT NOT NULL DEFAULT '',
    created_at   INTEGER NOT NULL,          -- nanoseconds since 1970, UTC
    changed_at   INTEGER NOT NULL
) STRICT;

-- A VM that is on its way out no longer holds its name.
CREATE UNIQUE INDEX vms_name ON vms (name) WHERE state <> 'deleting';
