"""The learned image translator: its training, and what is kept of it."""
