//go:build tools

// Package checker pins the independent checker of the manifests.
package checker

import _ "github.com/zegl/kube-score/cmd/kube-score"
