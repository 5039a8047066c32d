"""The backends: ``reference`` (the oracle), ``paper`` (the published form), ``cpu``, ``cuda``."""
