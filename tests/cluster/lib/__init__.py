"""The parts of the `cluster` program, one concern a module."""
