"""Results of a run: report and figure, labels of new images, networks to use elsewhere."""
