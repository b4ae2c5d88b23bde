//go:build tools

// Package engine pins the Pulumi CLI so that it can be built from its published module.
package engine

import _ "github.com/pulumi/pulumi/pkg/v3/cmd/pulumi"
