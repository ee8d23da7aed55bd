"""Test and time hxrd on a GPU machine without a network; run by gpu_check.sh, standard library only.

Every part runs in a process of its own with a limit, and `summary.json` is written anew after each of
them, so that it is there whatever fails.
"""

import argparse
import contextlib
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import time
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

CHECKOUT = Path(__file__).resolve().parent.parent
ALL_SECONDS = 465  # eight minutes less what starting and stopping take
GRACE = 8  # seconds between asking a part to end and killing it
NEEDED = (
    *("torch", "triton", "numpy", "pytest", "safetensors", "msgspec", "zarr", "gemmi", "numba", "pyarrow"),
    *("click", "platformdirs", "filelock", "periodictable", "moyopy", "scipy", "xdist", "rich"),
)
PROBE = """
import importlib, json, sys
found = {}
for name in sys.argv[1:]:
    try:
        module = importlib.import_module(name)
        found[name] = str(getattr(module, "__version__", "there"))
    except Exception as error:
        found[name] = f"missing ({type(error).__name__}: {error})"
device = {"available": False}
try:
    import torch
    device["available"] = torch.cuda.is_available()
    if device["available"]:
        properties = torch.cuda.get_device_properties(0)
        device |= {
            "name": properties.name,
            "devices": torch.cuda.device_count(),
            "memory_GiB": round(properties.total_memory / 2**30, 1),
            "multiprocessors": properties.multi_processor_count,
            "capability": list(torch.cuda.get_device_capability(0)),
            "cuda": torch.version.cuda,
        }
except ImportError:
    pass
print(json.dumps({"packages": found, "device": device}))
"""


@dataclass(frozen=True)
class Part:
    """One process of the check.

    Parameters
    ----------
    name : str
        Of its log too.
    arguments : tuple of str
        Of the Python interpreter.
    seconds : float
        It is ended after that.
    """

    name: str
    arguments: tuple[str, ...]
    seconds: float


def kernel_tests() -> list[str]:
    """Return the test files that run on a GPU: kernels but for their compilation to other targets, models."""
    patterns = ("test_gpu.py", "test_training_kernels.py", "test_generator.py", "test_resnet1d.py")
    patterns += ("test_conv_norm_gelu*.py", "test_stem_norm_pool*.py")
    files = [file for pattern in patterns for file in sorted((CHECKOUT / "tests").glob(pattern))]
    return [str(file.relative_to(CHECKOUT)) for file in files if not file.stem.endswith("_compiled")]


def parts(out: Path, on_cpu: bool, parallel: bool) -> list[Part]:
    """Return what is run: first what makes the rest quick, then in order of what matters most."""
    tests = ["tests/test_gpu.py"] if on_cpu else kernel_tests()
    workers = ("-n", str(min(12, os.cpu_count() or 1))) if parallel and not on_cpu else ()
    pytest = ("-P", "-m", "pytest", "-v", "--tb=short", "-p", "no:cacheprovider", *workers, *tests)
    network = ("benchmarks/bench_network.py", "--json", str(out / "network.json"))
    size = ("--tiny",) if on_cpu else ("--seconds", "170")
    # -P: else the checkout itself would be searched first, where hxrd has no kernels
    found = [Part("tests", pytest, 150), Part("network", network + size, 230)]
    if not on_cpu:
        found.insert(0, Part("warm", ("scripts/gpu_warm.py",), 75))
        layers = ("benchmarks/bench_conv_norm_gelu.py", f"--benchmark-json={out / 'layers.json'}")
        quick = ("--benchmark-max-time=0.2", "--benchmark-warmup=on", "-q", "-p", "no:cacheprovider")
        found.append(Part("layers", ("-P", "-m", "pytest", *layers, *quick), 60))
    return found


def make_site(site: Path) -> None:
    """Make `hxrd` importable from the folder `site` as an installation would, by links into the checkout."""
    project = tomllib.loads((CHECKOUT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    package = site / "hxrd"
    package.mkdir(parents=True)
    inside = [path for path in (CHECKOUT / "hxrd").iterdir() if path.name != "__pycache__"]
    for source in (*inside, CHECKOUT / "kernels", CHECKOUT / "cli"):
        (package / source.name).symlink_to(source)
    record = site / f"hxrd-{project['version']}.dist-info"
    record.mkdir()
    (record / "METADATA").write_text(
        f"Metadata-Version: 2.1\nName: hxrd\nVersion: {project['version']}\n", encoding="utf-8"
    )


def install(wheels: Path | None, site: Path, log: Path) -> list[str]:
    """Install the carried wheels into `site`; return those that pip refused."""
    files = sorted(wheels.glob("*.whl")) if wheels else []
    command = [sys.executable, "-m", "pip", "install", "--quiet", "--disable-pip-version-check", "--no-index"]
    command += ["--no-deps", "--no-compile", "--no-cache-dir", "--upgrade", "--target", str(site)]

    def refused(some: list[Path]) -> bool:
        with log.open("ab") as stream:
            done = subprocess.run(
                [*command, *map(str, some)], stdout=stream, stderr=stream, check=False, timeout=120
            )
        return done.returncode != 0

    if not files or not refused(files):
        return []
    return [file.name for file in files if refused([file])]


def environment(work: Path, on_cpu: bool) -> dict[str, str]:
    """Return the variables of every part: what was carried comes first, all caches lie in `work`."""
    inherited = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    paths = [str(work / "site"), *filter(None, [inherited.get("PYTHONPATH")])]
    return inherited | {
        "PYTHONPATH": os.pathsep.join(paths),
        "PYTHONUNBUFFERED": "1",
        "TRITON_CACHE_DIR": str(work / "triton"),
        "TORCHINDUCTOR_CACHE_DIR": str(work / "inductor"),
        "XDG_CACHE_HOME": str(work / "cache"),  # the tiles that trials chose
        **({"TRITON_INTERPRET": "1", "CUDA_VISIBLE_DEVICES": ""} if on_cpu else {}),
    }


def probe(variables: Mapping[str, str]) -> dict[str, Any]:
    """Return the packages that can be imported, and the device."""
    done = subprocess.run(
        [sys.executable, "-c", PROBE, *NEEDED],
        env=variables,
        capture_output=True,
        text=True,
        check=False,
        timeout=120,
    )
    lines = done.stdout.strip().splitlines()
    if done.returncode or not lines:
        return {"packages": {}, "device": {"available": False}, "problem": done.stderr.strip()[-500:]}
    return dict(json.loads(lines[-1]))


def run(part: Part, variables: Mapping[str, str], log: Path, seconds: float) -> dict[str, Any]:
    """Run a part for at most `seconds`; return how it ended."""
    began = time.monotonic()
    with log.open("wb") as stream:
        process = subprocess.Popen(
            [sys.executable, *part.arguments],
            cwd=CHECKOUT,
            env=dict(variables),
            stdout=stream,
            stderr=stream,
            start_new_session=True,
        )
        timed_out = False
        try:
            process.wait(seconds)
        except subprocess.TimeoutExpired:
            timed_out = True
            _end(process)
    return {
        "name": part.name,
        "command": " ".join(["python", *part.arguments]).replace(str(log.resolve().parent), "OUT_DIR"),
        "exit_code": process.returncode,
        "timed_out": timed_out,
        "seconds": round(time.monotonic() - began, 1),
        "log": log.name,
    }


def _end(process: subprocess.Popen[bytes]) -> None:
    """Interrupt a process, so that it may still write what it has; then end it with all its children."""
    process.send_signal(signal.SIGINT)
    with contextlib.suppress(subprocess.TimeoutExpired):
        process.wait(GRACE)
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()


def outcomes(log: Path) -> dict[str, Any]:
    """Count what a verbose pytest printed, which is there after a timeout as well."""
    text = log.read_text(encoding="utf-8", errors="replace")
    counts = {
        name.lower(): len(re.findall(rf"(?:::\S.* {name}\b|^\[gw\d+\].* {name} )", text, re.MULTILINE))
        for name in ("PASSED", "FAILED", "ERROR", "SKIPPED")
    }
    failures = re.findall(r"^(?:FAILED|ERROR) (.+)$", text, re.MULTILINE)
    return {**counts, "failures": failures[:100]}


def check(arguments: argparse.Namespace, work: Path) -> int:
    """Run all parts and return the exit code."""
    end = time.monotonic() + arguments.seconds
    out: Path = arguments.out
    out.mkdir(parents=True, exist_ok=True)
    variables = environment(work, arguments.check)
    make_site(work / "site")
    refused = install(arguments.wheels, work / "site", out / "install.log")
    found = probe(variables)
    summary: dict[str, Any] = {
        "began": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
        "dry_run": arguments.check,
        "python": sys.version.split()[0],
        "wheels_refused": refused,
        **found,
        "parts": [],
        "passed": False,
    }
    if not found["device"]["available"] and not arguments.check:
        summary["problem"] = _no_device(found)
        _write(summary, out)
        print(f"gpu_check: {summary['problem']}", file=sys.stderr)
        return 1
    parallel = not found["packages"].get("xdist", "missing").startswith("missing")
    for part in parts(out.resolve(), arguments.check, parallel):
        limit = min(part.seconds, end - time.monotonic() - GRACE)
        if limit < 5:
            summary["parts"].append({"name": part.name, "left_out": "no time left"})
            continue
        print(f"gpu_check: {part.name} (at most {limit:.0f} s)", file=sys.stderr, flush=True)
        log = out / f"{part.name}.log"
        ended = run(part, variables, log, limit)
        if part.name == "tests":
            ended |= outcomes(log)
        summary["parts"].append(ended)
        _write(summary, out)
        _tell(ended, log)
    summary["passed"] = all(part.get("exit_code") == 0 for part in summary["parts"])
    summary["network"] = _json_or_none(out / "network.json")
    summary["tiles"] = [_json_or_none(file) for file in (work / "cache").rglob("tiles/*.json")]
    _write(summary, out)
    print(
        f"gpu_check: {'passed' if summary['passed'] else 'FAILED'}; {out / 'summary.json'}", file=sys.stderr
    )
    return 0 if summary["passed"] else 1


def _no_device(found: Mapping[str, Any]) -> str:
    version = found["packages"].get("torch", "missing")
    torch = "torch cannot be imported" if version.startswith("missing") else f"torch {version} sees none"
    return (
        f"no CUDA device ({torch}); run it on a machine with a GPU, or with --check for a dry run on the CPU"
    )


def _tell(ended: Mapping[str, Any], log: Path) -> None:
    lines = log.read_text(encoding="utf-8", errors="replace").splitlines()
    shown = 40 if ended["exit_code"] else 25
    print("\n".join(lines[-shown:]), flush=True)
    state = "ran out of time" if ended["timed_out"] else f"exit code {ended['exit_code']}"
    print(f"gpu_check: {ended['name']}: {state}, {ended['seconds']} s", file=sys.stderr, flush=True)


def _json_or_none(path: Path) -> Any:
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None


def _write(summary: Mapping[str, Any], out: Path) -> None:
    part = out / "summary.json.part"
    part.write_text(json.dumps(summary, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
    os.replace(part, out / "summary.json")


def main() -> int:
    """Parse the command line, run the check, leave nothing but the output folder."""
    parser = argparse.ArgumentParser(prog="scripts/gpu_check.sh", description="Test and time hxrd on a GPU.")
    parser.add_argument("wheels", nargs="?", default="", help="folder of scripts/gpu_wheels.sh ('' for none)")
    parser.add_argument("out", nargs="?", type=Path, default=Path("gpu-check"), help="output folder")
    parser.add_argument("--check", action="store_true", help="a dry run on the CPU, with tiny sizes")
    parser.add_argument("--seconds", type=float, default=ALL_SECONDS, help="all of it ends within this time")
    arguments = parser.parse_args()
    arguments.wheels = Path(arguments.wheels) if arguments.wheels else None
    if arguments.wheels is not None and not arguments.wheels.is_dir():
        print(
            f"gpu_check: {arguments.wheels} is no folder; make it with scripts/gpu_wheels.sh", file=sys.stderr
        )
        return 2
    work = Path(tempfile.mkdtemp(prefix="hxrd-gpu-check-"))
    try:
        return check(arguments, work)
    finally:
        shutil.rmtree(work, ignore_errors=True)


if __name__ == "__main__":
    sys.exit(main())
