package store

import (
	"context"
	"database/sql"
	"embed"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"strings"

	"banger/internal/fault"
)

// The schema's history: file N brings a database from version N-1 to version N. The version of a database is its
// user_version (https://www.sqlite.org/pragma.html#pragma_user_version).
//
//go:embed migrations/*.sql
var migrations embed.FS

// migrate brings the database at path to the newest version.
func migrate(ctx context.Context, path string) error {
	scripts, err := fs.Glob(migrations, "migrations/*.sql") // sorted
	if err != nil {
		return fmt.Errorf("list migrations: %w", err)
	}
	newest := len(scripts)
	have, err := version(ctx, path)
	switch {
	case err != nil:
		return err
	case have == newest:
		return nil
	case have > newest:
		return fault.New(fault.Precondition, "the database %s has version %d and this banger knows versions up to %d",
			path, have, newest).WithHint("use the newer banger that wrote it; nothing was changed")
	}
	db, err := open(path, "rwc")
	if err != nil {
		return err
	}
	defer db.Close() //nolint:errcheck // errors of the steps tell
	if have > 0 {
		if err := keepCopy(ctx, db, fmt.Sprintf("%s.v%d.bak", path, have)); err != nil {
			return err
		}
	}
	for i, name := range scripts[have:] {
		script, err := migrations.ReadFile(name)
		if err != nil {
			return fmt.Errorf("read migration %s: %w", name, err)
		}
		if err := apply(ctx, db, string(script), have+i+1); err != nil {
			return storageError("migrate database "+path+" by "+strings.TrimPrefix(name, "migrations/"), err)
		}
	}
	return nil
}

// version reads the version of a database without changing a byte of it; 0 if there is none.
func version(ctx context.Context, path string) (int, error) {
	if st, err := os.Stat(path); errors.Is(err, fs.ErrNotExist) || err == nil && st.Size() == 0 {
		return 0, nil
	} else if err != nil {
		return 0, fmt.Errorf("look at database: %w", err)
	}
	db, err := open(path, "ro")
	if err != nil {
		return 0, err
	}
	defer db.Close() //nolint:errcheck // read only
	var n int
	if err := db.QueryRowContext(ctx, `PRAGMA user_version`).Scan(&n); err != nil {
		return 0, storageError("read version of database "+path, err)
	}
	return n, nil
}

// keepCopy writes a whole copy of the database to a new file, by way of a temporary name.
func keepCopy(ctx context.Context, db *sql.DB, path string) error {
	tmp := path + ".tmp"
	if err := removeCopy(tmp); err != nil {
		return err
	}
	if _, err := db.ExecContext(ctx, `VACUUM INTO ?`, tmp); err != nil {
		// Half a copy is of no use, and the room may be what is missing.
		return errors.Join(storageError("copy database before migration", err), removeCopy(tmp))
	}
	if err := os.Rename(tmp, path); err != nil {
		return fmt.Errorf("keep copy of database: %w", err)
	}
	return nil
}

// removeCopy removes what an attempt to copy that failed, or was killed, has left.
func removeCopy(tmp string) error {
	for _, path := range []string{tmp, tmp + "-journal"} {
		if err := os.Remove(path); err != nil && !errors.Is(err, fs.ErrNotExist) {
			return fmt.Errorf("remove left-over copy: %w", err)
		}
	}
	return nil
}

// apply runs one script and records its version in the same transaction; a process that lost the race finds it done.
func apply(ctx context.Context, db *sql.DB, script string, to int) error {
	tx, err := db.BeginTx(ctx, nil)
	if err != nil {
		return err
	}
	defer tx.Rollback() //nolint:errcheck // after Commit it does nothing
	var have int
	if err := tx.QueryRowContext(ctx, `PRAGMA user_version`).Scan(&have); err != nil {
		return err
	}
	if have >= to {
		return nil
	}
	if _, err := tx.ExecContext(ctx, script); err != nil {
		return err
	}
	if _, err := tx.ExecContext(ctx, fmt.Sprintf(`PRAGMA user_version = %d`, to)); err != nil {
		return err
	}
	return tx.Commit()
}
