"""`python -m diga_hpc` is the command `diga-hpc`."""

from diga_hpc.cli import main

if __name__ == "__main__":
    main()
