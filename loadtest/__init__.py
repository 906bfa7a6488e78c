"""The outside observer: load, measured over HTTP."""
