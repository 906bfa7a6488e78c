"""Continuous batching. Knows tokens; knows neither text nor Ray."""
