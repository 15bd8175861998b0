// Command protogen makes the Go code of the API from the files under a proto folder. It takes the place of protoc and
// buf, which can't be pinned in go.mod (a C++ program) or take minutes to build: the compiler is a library, and the two
// plugins are tools of this module, of the same version as the libraries that the generated code uses.
//
//	go -C tools run ./protogen [-check]
//
// It is run in the folder of its module. With -check it writes nothing and fails if a file would change.
package main

import (
	"bytes"
	"context"
	"errors"
	"flag"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"

	"github.com/bufbuild/protocompile"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/reflect/protodesc"
	"google.golang.org/protobuf/reflect/protoreflect"
	"google.golang.org/protobuf/types/descriptorpb"
	"google.golang.org/protobuf/types/pluginpb"
)

const (
	sourceDir = "proto"
	targetDir = "internal/gen"
	module    = "banger"
	toolsDir  = "tools"
)

func main() {
	check := flag.Bool("check", false, "write nothing; fail if a generated file differs")
	flag.Parse()
	err := os.Chdir("..") // every path is from the top of the repository
	if err == nil {
		err = run(context.Background(), *check)
	}
	if err != nil {
		fmt.Fprintln(os.Stderr, "protogen:", err)
		os.Exit(1)
	}
}

func run(ctx context.Context, check bool) error {
	request, err := compile(ctx)
	if err != nil {
		return err
	}
	want := map[string]string{}
	for _, plugin := range []string{"protoc-gen-go", "protoc-gen-connect-go"} {
		if err := generate(ctx, plugin, request, want); err != nil {
			return err
		}
	}
	have, err := read()
	if err != nil {
		return err
	}
	if check {
		return compare(have, want)
	}
	return write(have, want)
}

// compile parses every file under proto and returns what the plugins are asked.
func compile(ctx context.Context) (*pluginpb.CodeGeneratorRequest, error) {
	var names []string
	err := filepath.WalkDir(sourceDir, func(path string, _ fs.DirEntry, err error) error {
		if err == nil && strings.HasSuffix(path, ".proto") {
			rel, _ := filepath.Rel(sourceDir, path) // both are relative and one is in the other
			names = append(names, filepath.ToSlash(rel))
		}
		return err
	})
	if err != nil {
		return nil, fmt.Errorf("list proto files: %w", err)
	}
	compiler := protocompile.Compiler{
		Resolver:       protocompile.WithStandardImports(&protocompile.SourceResolver{ImportPaths: []string{sourceDir}}),
		SourceInfoMode: protocompile.SourceInfoStandard,
	}
	files, err := compiler.Compile(ctx, names...)
	if err != nil {
		return nil, fmt.Errorf("compile: %w", err)
	}
	request := &pluginpb.CodeGeneratorRequest{FileToGenerate: names, Parameter: proto.String("module=" + module)}
	seen := map[string]bool{}
	for _, f := range files {
		request.ProtoFile = appendFile(request.ProtoFile, f, seen)
	}
	return request, nil
}

// appendFile appends a file after those that it imports, each of them once.
func appendFile(to []*descriptorpb.FileDescriptorProto, f protoreflect.FileDescriptor, seen map[string]bool) []*descriptorpb.FileDescriptorProto {
	if seen[f.Path()] {
		return to
	}
	seen[f.Path()] = true
	for i := range f.Imports().Len() {
		to = appendFile(to, f.Imports().Get(i).FileDescriptor, seen)
	}
	return append(to, protodesc.ToFileDescriptorProto(f))
}

// generate runs one plugin and adds the files it makes, by path from the top of the repository.
func generate(ctx context.Context, plugin string, request *pluginpb.CodeGeneratorRequest, into map[string]string) error {
	in, err := proto.Marshal(request)
	if err != nil {
		return fmt.Errorf("ask %s: %w", plugin, err)
	}
	cmd := exec.CommandContext(ctx, "go", "-C", toolsDir, "tool", plugin)
	cmd.Stdin, cmd.Stderr = bytes.NewReader(in), os.Stderr
	out, err := cmd.Output()
	if err != nil {
		return fmt.Errorf("run %s: %w", plugin, err)
	}
	var response pluginpb.CodeGeneratorResponse
	if err := proto.Unmarshal(out, &response); err != nil {
		return fmt.Errorf("read the answer of %s: %w", plugin, err)
	}
	if response.GetError() != "" {
		return fmt.Errorf("%s: %s", plugin, response.GetError())
	}
	for _, f := range response.GetFile() {
		into[f.GetName()] = f.GetContent()
	}
	return nil
}

// read returns the generated files there are.
func read() (map[string]string, error) {
	files := map[string]string{}
	err := filepath.WalkDir(targetDir, func(path string, d fs.DirEntry, err error) error {
		if errors.Is(err, fs.ErrNotExist) {
			return nil // nothing has been generated yet
		}
		if err != nil || d.IsDir() {
			return err
		}
		data, err := os.ReadFile(path)
		files[filepath.ToSlash(path)] = string(data)
		return err
	})
	if err != nil {
		return nil, fmt.Errorf("read generated files: %w", err)
	}
	return files, nil
}

func compare(have, want map[string]string) error {
	var differ []string
	for path, text := range want {
		if have[path] != text {
			differ = append(differ, path)
		}
	}
	for path := range have {
		if _, ok := want[path]; !ok {
			differ = append(differ, path)
		}
	}
	if len(differ) == 0 {
		return nil
	}
	slices.Sort(differ)
	return fmt.Errorf("generated code is not that of the proto files: %s (run: make gen)", strings.Join(differ, ", "))
}

// write replaces the files that differ and removes those that nothing generates any more.
func write(have, want map[string]string) error {
	for path, text := range want {
		if have[path] == text {
			continue
		}
		if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
			return fmt.Errorf("write generated code: %w", err)
		}
		if err := os.WriteFile(path, []byte(text), 0o644); err != nil {
			return fmt.Errorf("write generated code: %w", err)
		}
	}
	for path := range have {
		if _, ok := want[path]; ok {
			continue
		}
		if err := os.Remove(path); err != nil {
			return fmt.Errorf("remove stale generated code: %w", err)
		}
	}
	return nil
}
