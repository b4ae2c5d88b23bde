"""Target kubernetes: what its components share. Manifests are pure functions that return plain dictionaries."""
