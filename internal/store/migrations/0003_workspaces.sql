-- What was put into a VM's /root from the host: of each VM the newest.
CREATE TABLE workspaces (
    vm_id       TEXT PRIMARY KEY REFERENCES vms (id) ON DELETE CASCADE,
    guest_dir   TEXT NOT NULL,
    host_path   BLOB NOT NULL,              -- a path may be any bytes
    copied      INTEGER NOT NULL,           -- a plain directory: the five below are empty
    head        TEXT NOT NULL,              -- commit; empty: there was none yet
    host_head   TEXT NOT NULL,              -- what the host had checked out then: another, if a branch began elsewhere
    branch      TEXT NOT NULL,              -- empty: the head was detached
    tree        TEXT NOT NULL,              -- that git would make of the working tree
    files       TEXT NOT NULL,              -- tree of the files in the guest, byte for byte
    prepared_at INTEGER NOT NULL            -- nanoseconds since 1970, UTC
) STRICT;
