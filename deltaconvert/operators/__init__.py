"""The operators: one file each, found by being here. See `registry` and CONTRIBUTING.md."""
