"""Where invocations come from."""
