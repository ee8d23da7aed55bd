"""What a run measured, as a table for people and as JSON: figures, hardware, versions, commit."""

import datetime
import importlib.metadata
import os
import platform
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from interleaved import Ratio

PACKAGES = (
    *("hxrd", "numpy", "numba", "llvmlite", "gemmi", "pymatgen", "xrd-rust", "phasesmith", "moyopy"),
    *("torch", "triton", "onnx", "onnxruntime", "openvino"),
)
CHECKOUT = Path(__file__).resolve().parent.parent


@dataclass(frozen=True)
class Line:
    """One comparison.

    Parameters
    ----------
    name : str
        What is compared with what.
    need : float or None
        The least ratio that the project asks for; None where a figure is for information.
    ratio : Ratio
        Times of the other over ours, or rate of the second over the first, as `name` says.
    ours, other : float
        Median seconds of one crystal, or of what `name` says.
    agreement : str
        How far the two results are apart, measured before anything was timed.
    """

    name: str
    need: float | None
    ratio: Ratio
    ours: float
    other: float
    agreement: str = ""

    @property
    def met(self) -> bool | None:
        """Whether the median reaches what is asked for."""
        return None if self.need is None else self.ratio.median >= self.need


def table(lines: list[Line]) -> str:
    """Return the lines as columns of text."""
    rows = [("ratio", "quartiles", "need", "", "ours µs", "other µs", "what, and its agreement")]
    for line in lines:
        need = "" if line.need is None else f"{line.need:g}"
        verdict = {None: "", True: "met", False: "MISSED"}[line.met]
        spread = f"{line.ratio.low:.2f}–{line.ratio.high:.2f}"
        what = f"{line.name} ({line.agreement})" if line.agreement else line.name
        ours, other = f"{line.ours * 1e6:.1f}", f"{line.other * 1e6:.1f}"
        rows.append((f"{line.ratio.median:.2f}", spread, need, verdict, ours, other, what))
    widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))]
    return "\n".join(
        "  ".join([*(cell.rjust(width) for cell, width in zip(row[:-1], widths, strict=False)), row[-1]])
        for row in rows
    )


def record(lines: list[Line], breakdown: dict[str, Any], clock: str) -> dict[str, Any]:
    """Return all of a run, ready for JSON; times in µs, of the clock named."""
    return {
        "date": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        "command": " ".join(["python", *sys.argv]),
        "hardware": hardware(),
        "versions": {"python": platform.python_version(), **versions()},
        "commit": _git("rev-parse", "HEAD"),
        "changed_since_commit": bool(_git("status", "--porcelain", "--", "hxrd", "kernels", "benchmarks")),
        "threads": 1,
        "clock": clock,
        "lines": [
            {
                "name": line.name,
                "need": line.need,
                "met": line.met,
                "ratio": _rounded(line.ratio.median),
                "quartiles": [_rounded(line.ratio.low), _rounded(line.ratio.high)],
                "rounds": line.ratio.rounds,
                "ours_us": _rounded(line.ours * 1e6),
                "other_us": _rounded(line.other * 1e6),
                "agreement": line.agreement,
            }
            for line in lines
        ],
        "breakdown": breakdown,
    }


def versions() -> dict[str, str]:
    """Return the versions of what was timed, of the peers that are installed."""
    found = {}
    for name in PACKAGES:
        try:
            found[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue
    return found


def hardware() -> dict[str, Any]:
    """Return processor, cores, memory and how busy the machine was."""
    processor = platform.processor() or platform.machine()
    flags: list[str] = []
    cpuinfo = Path("/proc/cpuinfo")
    if cpuinfo.is_file():
        fields = dict(
            line.split(":", 1) for line in cpuinfo.read_text("utf-8").splitlines() if line.count(":") == 1
        )
        named = {key.strip(): value.strip() for key, value in fields.items()}
        processor = named.get("model name", processor)
        present = set(named.get("flags", "").split())
        flags = [flag for flag in ("avx2", "fma", "avx512f", "avx512_bf16") if flag in present]
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") if hasattr(os, "sysconf") else 0
    return {
        "processor": processor,
        "flags": flags,
        "cores": os.cpu_count(),
        "memory_GiB": round(memory / 2**30, 1),
        "load_average": os.getloadavg()[0] if hasattr(os, "getloadavg") else None,
    }


def _rounded(value: float) -> float:
    return float(f"{value:.4g}")


def _git(*arguments: str) -> str:
    found = subprocess.run(["git", *arguments], cwd=CHECKOUT, capture_output=True, text=True, check=False)
    return found.stdout.strip()
