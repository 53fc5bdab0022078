"""env.sh: what a job finds out about its node."""

import os
import subprocess

import pytest

from helpers.paths import ROOT

OPTIONS = {"8": "--mpi=none --cpu-bind=cores 8", "1": "--mpi=none", "": "--mpi=none"}


@pytest.mark.parametrize("cpus", OPTIONS)
def test_a_rank_is_bound_to_cores_only_where_their_number_is_known(cpus):
    """Slurm also sets 1 in a shell that submits a job without a number."""
    program = (
        f'repository=x; source {ROOT}/slurm/env.sh; echo "${{srun_options[@]}}" $SRUN_CPUS_PER_TASK'
    )
    environment = os.environ | {"SLURM_CPUS_PER_TASK": cpus}
    environment.pop("SRUN_CPUS_PER_TASK", None)
    command = ["bash", "-c", program]
    done = subprocess.run(command, env=environment, capture_output=True, text=True)
    assert done.stdout.strip() == OPTIONS[cpus]
