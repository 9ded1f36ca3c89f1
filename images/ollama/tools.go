//go:build tools

// Package tools pins the engine: go.sum holds the digest of every module it is built from.
package tools

import _ "github.com/ollama/ollama"
