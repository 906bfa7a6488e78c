"""Machines to bring clusters up on."""
