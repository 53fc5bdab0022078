"""What a run records about its source and machine."""

import subprocess
import sys

import diga_hpc
from diga_hpc.run import provenance
from helpers.paths import ROOT


def test_versions_machine_and_command_are_recorded(monkeypatch):
    monkeypatch.setattr(sys, "argv", ["diga-hpc", "warm-up", "x.yaml"])
    monkeypatch.setattr(provenance, "VERSIONED", ("torch", "no-such-package"))
    lines = provenance.environment("cuda None, device none").splitlines()
    assert lines[0].startswith(f"diga_hpc {diga_hpc.__version__}")
    assert any(line.startswith("torch 2.") for line in lines)
    assert {"no-such-package not installed", "cuda None, device none"} <= set(lines)
    assert lines[-1] == "command diga-hpc warm-up x.yaml"


def test_the_commit_of_this_checkout():
    command = ["git", "-C", str(ROOT), "rev-parse", "--short", "HEAD"]
    head = subprocess.run(command, capture_output=True, text=True)
    if head.returncode:
        # Exported without its history.
        assert provenance.source_commit() == ""
    else:
        assert provenance.source_commit().removesuffix("-dirty").startswith(head.stdout.strip()[:7])


def test_no_commit_outside_a_checkout(tmp_path, monkeypatch):
    """Nor that of a repository which happens to be around the installed package."""
    subprocess.run(["git", "init", "-q", str(tmp_path)], check=True)
    monkeypatch.setattr(provenance, "__file__", str(tmp_path / "provenance.py"))
    provenance.source_commit.cache_clear()
    assert provenance.source_commit() == ""
    provenance.source_commit.cache_clear()
