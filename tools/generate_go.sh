#!/bin/sh
# Generates the stubs of clients/go below the folder $1. It needs Go, which builds the plugins that go.mod pins.
set -e
target=$(realpath "$1")
cd "$(dirname "$0")/../clients/go"
plugins=$PWD/../../build/go
GOBIN=$plugins go install tool
PATH=$plugins:$PATH ../../.venv/bin/buf generate ../../protos --template ../../protos/buf.gen.go.yaml -o "$target"
