"""A stand-in for the provider plugin `aws`, which no package registry carries."""
