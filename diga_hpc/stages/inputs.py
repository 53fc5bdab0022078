"""Inputs: what a result or pseudo labels were made from, kept with them and compared before use.

A dictionary, as JSON: `weights` is a digest of the network, and under the names of data sets
(inspection.opening) stand their kind, root, number of images and fingerprint.
"""

from typing import Any

from diga_hpc.errors import UserError
from diga_hpc.inspection import identity
from diga_hpc.run.directory import checkpoint_name, checkpoint_steps
from diga_hpc.stages.plan import TRANSLATION, Planned, trained
from diga_hpc.stages.translation.training import GENERATOR
from diga_hpc.training import checkpoint
from diga_hpc.training.resume import MADE_FROM, trained_weights
from diga_hpc.training.stage import STUDENT, Context

Inputs = dict[str, Any]
DIGEST_LENGTH = 16
FILES = "files"  # key for digests of what was made, which are no inputs


def inputs_of(context: Context, stage: str, network: str, *data: str) -> Inputs:
    """Of a finished stage's network, and of the data sets with these names.

    All ranks call it together; rank 0 reads. Raises UserError if the stage is not finished.
    """
    planned = next(p for p in trained(context.config) if p.name == stage)
    weights = context.world.on_rank0(lambda: weights_digest(context, planned, network))
    if weights is None:
        # Raises for a stage that is not finished.
        assert planned.training is not None
        trained_weights(context, stage, planned.training.steps, network)
    return {"weights": weights} | inputs_of_data(context, *data)


def inputs_of_data(context: Context, *data: str) -> Inputs:
    """Of the data sets with these names, as far as the configuration has them."""
    summaries = context.inspected.summaries
    return {name: summaries[name] for name in data if name in summaries}


def weights_digest(context: Context, stage: Planned, network: str) -> str | None:
    """Digest of the last checkpoint's weights, from its manifest; None without one."""
    assert stage.training is not None
    # The checkpoint itself is verified where its weights are loaded.
    folder = context.run.checkpoints(stage.name) / checkpoint_name(stage.training.steps)
    try:
        _, digest = checkpoint.read_manifest(folder)[f"{network}.safetensors"]
    except checkpoint.MALFORMED:
        return None
    return digest[:DIGEST_LENGTH]


def translator_digest(context: Context) -> str | None:
    """Digest of the generator that the stage `translation` has trained; None without one."""
    stage = next((s for s in trained(context.config) if s.kind == TRANSLATION), None)
    return weights_digest(context, stage, GENERATOR) if stage else None


def networks_of(context: Context, planned: Planned) -> Inputs:
    """Digests of the networks of this run that a stage is trained with: start and translator.

    Those whose files are gone are left out. Rank 0 calls it.
    """
    start = next((s for s in trained(context.config) if s.name == planned.starts_from), None)
    found: dict[str, str | None] = {}
    if start is not None:
        found["network to start from"] = weights_digest(context, start, STUDENT)
    if planned.training and planned.training.translates:
        found["translator"] = translator_digest(context)
    return {name: digest for name, digest in found.items() if digest is not None}


def require_same_networks(context: Context, planned: Planned) -> None:
    """Raise UserError if a stage has a checkpoint that was trained with networks of other digests.

    All ranks call it together.
    """
    folder = context.run.checkpoints(planned.name)

    def check() -> None:
        steps = checkpoint_steps(folder)
        try:
            state = checkpoint.read_state(folder / checkpoint_name(max(steps, default=0)))
        except checkpoint.MALFORMED:
            # None yet, or a corrupt one, which is not resumed from.
            return
        recorded = state.get(MADE_FROM, {})
        for name, now in networks_of(context, planned).items():
            before = recorded.get(name, now)
            if now != before:
                raise UserError(
                    f"{folder}: trained with another {name} (digest {before}) than the one that "
                    f"this run now has ({now}); remove the folder to train {planned.name} again, "
                    "or choose another run_dir"
                )

    context.world.on_rank0(check)


def same(old: Any, new: Inputs) -> bool:
    """Whether kept inputs are these: equal weights and fingerprints, wherever the data lie."""
    return isinstance(old, dict) and _compared(old) == _compared(new)


def _compared(inputs: Inputs) -> Inputs:
    return {
        name: value.get("fingerprint") if isinstance(value, dict) else value
        for name, value in inputs.items()
        if name != FILES
    }


def describe(inputs: Any) -> str:
    """In a message: `weights 1f3a, target /data/A (3 images, fingerprint 07bc)`."""
    if not isinstance(inputs, dict):
        return "inputs that were not recorded"
    parts = [f"weights {inputs['weights']}"] if "weights" in inputs else []
    for name, value in inputs.items():
        if isinstance(value, dict) and name != FILES:
            parts.append(f"{name} {identity.describe(value)}")
    return ", ".join(parts)
