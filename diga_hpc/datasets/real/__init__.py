"""Data sets of photographs, one per file."""
