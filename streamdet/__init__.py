"""streamdet: a streaming online anomaly detector for sensor and transaction feeds."""

__version__ = "0.1.0"
