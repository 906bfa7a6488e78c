"""Routing is arithmetic on rows and experts, placement, and framed bytes; it knows no Mixtral."""
