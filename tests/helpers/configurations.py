"""A configuration small enough to train in seconds."""

from pathlib import Path

TINY = """
run_dir: {run_dir}
label_space: streets
data:
  source: {{kind: streets, style: source, images: 12, scene_size: [48, 96]}}
  target: {{kind: streets, style: target, images: 6, first: 100, scene_size: [48, 96]}}
  validation: {{kind: streets, style: target, images: 3, first: 200, scene_size: [48, 96]}}
  workers: 0
model: {{name: lite, weights: random}}
teacher: {{momentum: 0.9}}
optimizer: {{name: sgd, lr_head: 0.005, lr_backbone: 0.002}}
source_only: {{steps: 3, crop: [32, 48], batch: {{full: 4}}}}
warm_up: {{steps: 4, crop: [32, 48], start: source_only, batch: {{full: 3, half: 1}}}}
self_training: {{steps: 4, crop: [32, 48], batch: {{full: 4}}}}
evaluation: {{panels: 1}}
engine: {{device: cpu}}
logging: {{every: 1, checkpoint_every: 2}}
"""


def write_tiny_yaml(folder: Path) -> Path:
    """Write the configuration to `folder`/tiny.yaml; its run directory is `folder`/run."""
    path = folder / "tiny.yaml"
    text = TINY.format(run_dir=folder / "run")
    # Half-size crops need half-size images at least as large as the crop.
    path.write_text(
        text.replace("images: 12,", "images: 12, half_size: [40, 64],").replace(
            "first: 100,", "first: 100, half_size: [40, 64],"
        )
    )
    return path
