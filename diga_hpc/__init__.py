"""diga_hpc: distributed training of DiGA (CVPR 2023), from one laptop to a Slurm cluster.

Importing the package loads neither torch nor deepspeed; the submodules load what they need.
"""

__version__ = "0.1.0"
