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
    """Commit of the source tree, with ``+changes`` if it has uncommitted ones; without git $NB_LIB_COMMIT.

    As it was when this process asked first: the tree may move on while what it has loaded stays.
    """
    try:
        # in some other project's repository git would answer with that project's commit
        _git("ls-files", "--error-unmatch", Path(__file__).name)
        head = _git("rev-parse", "--short=12", "HEAD")
        changed = _git("status", "--porcelain", "-uno")
    except (OSError, subprocess.CalledProcessError):
        return os.environ.get("NB_LIB_COMMIT", "unknown")
    return f"{head}+changes" if changed else head


def _git(*arguments: str) -> str:
    command = ["git", "-C", str(Path(__file__).parent), *arguments]
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()
