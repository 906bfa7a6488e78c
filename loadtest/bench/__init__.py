"""Measured side by side: the machine's limits, mixray, and the rivals that are installed."""
