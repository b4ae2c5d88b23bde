"""Where invocations go to."""
