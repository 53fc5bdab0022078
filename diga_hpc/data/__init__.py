"""Data: label spaces, data sets, geometry, and batches that depend on (seed, sample number) alone."""
