"""Where a result came from: machine, versions, commit, date."""

import os
import platform
import subprocess
from datetime import UTC, datetime
from functools import cache
from pathlib import Path
from typing import Any

import torch

from nb_lib import __version__


def provenance(device: torch.device) -> dict[str, Any]:
    """Device, threads, versions, commit and date, as plain values; nothing that names a machine or a user.

    >>> sorted(provenance(torch.device("cpu")))
    ['commit', 'date', 'device', 'nb_lib', 'python', 'threads', 'torch']
    """
    return {
        "device": device_name(device),
        "threads": torch.get_num_threads(),
        "nb_lib": __version__,
        "commit": commit(),
        "torch": torch.__version__,
        "python": platform.python_version(),
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
    }


def device_name(device: torch.device) -> str:
    """Name of the accelerator, or kind of processor ("x86_64 CPU, AVX512")."""
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    return f"{platform.machine()} CPU, {torch.backends.cpu.get_cpu_capability()}"


@cache
def commit() -> str:
    """Commit that this package is part of, with ``+changes`` if it has uncommitted ones; else $NB_LIB_COMMIT.

    That is where git does not have this package: without git, or in an environment within another repository.  As it
    was when this process asked first: the tree may move on while what it has loaded stays.
    """
    package = Path(__file__).resolve().parents[1]
    try:
        _git(package, "cat-file", "-e", "HEAD:./__init__.py")  # else HEAD is that of some other project
        head = _git(package, "rev-parse", "--short=12", "HEAD")
        changed = _git(package, "status", "--porcelain", "--", "*.py")
    except (OSError, subprocess.CalledProcessError):
        return os.environ.get("NB_LIB_COMMIT") or "unknown"
    return f"{head}+changes" if changed else head


def _git(folder: Path, *arguments: str) -> str:
    elsewhere = ("GIT_DIR", "GIT_WORK_TREE", "GIT_INDEX_FILE")  # as a hook of any repository sets them
    here = {name: value for name, value in os.environ.items() if name not in elsewhere}
    command = ["git", "--no-optional-locks", "-C", str(folder), *arguments]
    done = subprocess.run(command, capture_output=True, text=True, errors="replace", check=True, env=here)
    return done.stdout.strip()
