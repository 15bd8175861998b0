package progress

import "context"

type operationKey struct{}

// WithOperation returns a context that belongs to the operation with this id, so that whatever the work touches (log,
// journal, locks) can name it.
func WithOperation(ctx context.Context, id string) context.Context {
	return context.WithValue(ctx, operationKey{}, id)
}

// OperationOf returns the id of the operation that a context belongs to; empty if it belongs to none.
func OperationOf(ctx context.Context) string {
	id, _ := ctx.Value(operationKey{}).(string)
	return id
}
