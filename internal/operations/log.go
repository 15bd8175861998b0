package operations

import (
	"context"
	"log/slog"

	"banger/internal/progress"
)

// LogHandler adds to each line that is logged with a context the id of the operation that the context belongs to, under
// the key "op".
func LogHandler(next slog.Handler) slog.Handler { return logHandler{next} }

type logHandler struct{ slog.Handler }

func (h logHandler) Handle(ctx context.Context, r slog.Record) error {
	if id := progress.OperationOf(ctx); id != "" {
		r = r.Clone()
		r.AddAttrs(slog.String("op", id))
	}
	return h.Handler.Handle(ctx, r)
}

func (h logHandler) WithAttrs(attrs []slog.Attr) slog.Handler {
	return logHandler{h.Handler.WithAttrs(attrs)}
}

func (h logHandler) WithGroup(name string) slog.Handler { return logHandler{h.Handler.WithGroup(name)} }
