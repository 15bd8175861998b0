//go:build vm

package e2e

import (
	"context"
	"database/sql"
	"os"
	"path/filepath"
	"strconv"
	"syscall"

	"github.com/rogpeppe/go-internal/testscript"
	_ "modernc.org/sqlite" // to write the databases of other versions of banger
)

// cmdDatabase changes a scenario's database while no daemon runs.
//
//	database oldest PATH         makes at PATH a database of the first version, with the VMs of the scenario's
//	database version N PATH      makes the database look as if a banger of another version had written it
//	database fill MIB PATH       makes the database so much larger
func cmdDatabase(ts *testscript.TestScript, _ bool, args []string) {
	if len(args) < 2 {
		ts.Fatalf("usage: database oldest PATH | database version N PATH | database fill MIB PATH")
	}
	path := ts.MkAbs(args[len(args)-1])
	ctx := context.Background()
	db, err := sql.Open("sqlite", path)
	ts.Check(err)
	defer db.Close() //nolint:errcheck // the statements tell
	do := func(query string, args ...any) {
		_, err := db.ExecContext(ctx, query, args...)
		ts.Check(err)
	}
	switch {
	case args[0] == "oldest" && len(args) == 2:
		script, err := os.ReadFile(filepath.Join("..", "internal", "store", "migrations", "0001_vms.sql"))
		ts.Check(err)
		do(`PRAGMA journal_mode = WAL`) // as banger has it
		do(string(script) + "; PRAGMA user_version = 1")
		present := filepath.Join(ts.Getenv("XDG_STATE_HOME"), "banger", "banger.db")
		if _, err := os.Stat(present); err == nil && present != path {
			const columns = `id, name, spec, image_digest, state, cause, ephemeral, boot_id, created_at, changed_at`
			db.SetMaxOpenConns(1) // what is attached is of one connection
			do(`ATTACH ? AS present`, present)
			do(`INSERT INTO vms (` + columns + `) SELECT ` + columns + ` FROM present.vms`)
			do(`DETACH present`)
		}
	case args[0] == "version" && len(args) == 3:
		n, err := strconv.Atoi(args[1])
		ts.Check(err)
		do(`PRAGMA user_version = ` + strconv.Itoa(n))
		do(`PRAGMA wal_checkpoint(TRUNCATE)`)
	case args[0] == "fill" && len(args) == 3:
		n, err := strconv.Atoi(args[1])
		ts.Check(err)
		do(`INSERT INTO vms (id, name, spec, image_digest, state, cause, created_at, changed_at)
			VALUES ('ffffffffffff', 'large', '{}', '', 'stopped', hex(zeroblob(?)), 0, 0)`, n<<19)
	default:
		ts.Fatalf("usage: database oldest PATH | database version N PATH | database fill MIB PATH")
	}
}

// cmdCrash: crash VM kills everything of banger's at once: the daemon, the VM's monitor and its VMM.
func cmdCrash(ts *testscript.TestScript, _ bool, args []string) {
	if len(args) != 1 {
		ts.Fatalf("usage: crash VM")
	}
	info := show(ts, args[0])
	if info.MonitorPid <= 1 || info.VMMPid <= 1 {
		ts.Fatalf("VM %s does not run: %+v", args[0], info)
	}
	for _, pid := range []int{daemonPid(ts), info.MonitorPid, info.VMMPid} {
		ts.Check(ignoreGone(syscall.Kill(pid, syscall.SIGKILL)))
	}
}

// ignoreGone forgives that a process had ended already: a VMM goes with its monitor.
func ignoreGone(err error) error {
	if err == syscall.ESRCH { //nolint:errorlint // a system call's own error
		return nil
	}
	return err
}
