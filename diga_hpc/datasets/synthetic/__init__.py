"""Data sets of rendered street scenes, one per file."""
