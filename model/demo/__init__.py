"""The demo model: a small real Mixtral, its text, its training, its weights."""
