package cli

import (
	"encoding/json"
	"io"
	"time"

	"github.com/spf13/cobra"

	bangerv1 "banger/internal/gen/banger/v1"
)

// timingsFlag is --timings: a table, or JSON if that is asked for.
type timingsFlag struct{ choiceFlag }

func (f *timingsFlag) register(cmd *cobra.Command) {
	f.choices = []string{"table", "json"}
	cmd.Flags().Var(f, "timings", "at the end, print how long each stage took: "+f.list())
	cmd.Flags().Lookup("timings").NoOptDefVal = "table"
	complete(cmd, "timings", fixed(f.choices...))
}

// begin starts the clock of a command and returns what prints its stages to standard error, if that is asked for.
func (f *timingsFlag) begin(a *app, d *display) (end func()) {
	began := time.Now()
	return func() {
		switch f.value {
		case "":
		case "json":
			d.timingsJSON(a.sys.Stderr, time.Since(began))
		default:
			d.timings(a.sys.Stderr, time.Since(began))
		}
	}
}

// timingsView is the stages as JSON.
type timingsView struct {
	Stages []stageView `json:"stages"`
	Total  float64     `json:"total"` // seconds
}

// timingsJSON writes all stages and the total as one line of JSON.
func (d *display) timingsJSON(w io.Writer, total time.Duration) {
	d.mu.Lock()
	defer d.mu.Unlock()
	v := timingsView{Stages: []stageView{}, Total: total.Seconds()}
	for _, s := range d.stages {
		if s.ended {
			v.Stages = append(v.Stages, stageView{s.title(), s.elapsed.Seconds()})
		}
	}
	_ = json.NewEncoder(w).Encode(v)
}

// recordStart adds what the VM's monitor has measured of its start: parts of the stages that the daemon tells.
func (d *display) recordStart(vm *bangerv1.VM) {
	for _, s := range vm.GetStartStages() {
		d.record("of it "+s.GetName(), s.GetElapsed().AsDuration())
	}
}
