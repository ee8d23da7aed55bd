"""The fused network against torch's own operators, eager and compiled: forward, training, end to end.

python benchmarks/bench_network.py --json network.json     (made for a CUDA device; `--tiny` runs anywhere)
"""

import argparse
import contextlib
import json
import os
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import interleaved
import numpy as np
import report
import torch
from network_contestants import (
    BOUNDS,
    Setting,
    Step,
    exact_float32,
    forward_calls,
    gradient_error,
    relative_error,
    replayed,
    training_steps,
)
from network_end_to_end import MissingPackage, end_to_end
from network_stages import copy_ceiling, product_ceiling, stages
from plain_network import PlainNetwork
from torch import Tensor

from hxrd.kernels import dispatch

NEEDED_FORWARD, NEEDED_TRAINING, NEEDED_RATE = 1.5, 1.2, 1_000_000
DROPOUT = 0.1
CHECKED = 256  # patterns whose logits are compared with float32
REPEATS = 10  # of a stage in the graph that is timed
LARGEST_BATCH, BYTES_A_PATTERN = 16384, 4 * 2**20  # what torch's own operators need in the eager network


class Bench:
    """One run: what is timed, how long, and what was found so far.

    Parameters
    ----------
    arguments : argparse.Namespace
        Of `main`.
    """

    def __init__(self, arguments: argparse.Namespace):
        self.end = time.monotonic() + arguments.seconds
        self.tiny, self.json = arguments.tiny, arguments.json
        self.device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
        on_gpu = self.device.type == "cuda"
        self.dtype = {"bf16": torch.bfloat16, "fp32": torch.float32}[arguments.precision]
        self.batch = arguments.batch or (8 if self.tiny else _largest_batch() if on_gpu else 256)
        self.training_batch = max(4, self.batch // 8)
        self.sample = 0.05 if self.tiny else 1.5  # seconds of timing for each contestant
        self.backend = "triton" if on_gpu else "reference" if self.tiny else "auto"
        self.compile_options = {"backend": "aot_eager"} if self.tiny else {"mode": "max-autotune"}
        self.lines: list[report.Line] = []
        self.sections: dict[str, Any] = {}
        self.wrong: list[str] = []

    def setting(self, variant: str) -> Setting:
        """Return what all contestants of a variant share."""
        return Setting(self.device, self.dtype, variant, 3041, self.backend, self.compile_options)  # type: ignore[arg-type]

    @contextlib.contextmanager
    def section(self, name: str) -> Iterator[None]:
        """Run a section; what it finds is written at once, and its failure stops no other."""
        began = time.monotonic()
        self.sections.setdefault(name, {})
        if began > self.end:
            self.sections[name] = {"left_out": "no time left"}
        try:
            yield
        except MissingPackage as missing:
            self.sections[name]["left_out"] = str(missing)
        except Exception as error:
            self.sections[name]["failed"] = f"{type(error).__name__}: {error}"[:1000]
            self.wrong.append(name)
        finally:
            self.sections[name]["section_seconds"] = round(time.monotonic() - began, 1)
            self.write()

    def out_of_time(self) -> bool:
        return time.monotonic() > self.end

    def write(self) -> None:
        """Write all that was found so far."""
        if self.json is None:
            return
        self.json.parent.mkdir(parents=True, exist_ok=True)
        part = self.json.with_name(self.json.name + ".part")
        part.write_text(json.dumps(self.record(), indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
        os.replace(part, self.json)

    def record(self) -> dict[str, Any]:
        """Return the run, ready for JSON."""
        found = report.record(self.lines, self.sections, "wall")
        found["command"] = "python benchmarks/bench_network.py"
        found["threads"] = torch.get_num_threads()
        found["versions"] |= {"torch": torch.__version__, "triton": _version("triton")}
        if self.device.type == "cuda":
            found["hardware"] |= {"device": torch.cuda.get_device_name(), "cuda": torch.version.cuda}
        found["kernels"] = dispatch.describe(self.device, self.backend)
        found["wrong"] = self.wrong
        return found

    def seconds_of(self, call: Callable[[], object]) -> float:
        """Return the median time of a call, waiting for the device."""
        times = interleaved.times_in_turn({"it": self.waited(call)}, self.sample / 10)
        return float(np.median(times["it"]))

    def device_seconds_of(self, call: Callable[[], object]) -> float:
        """Return the median time that the device works on a call: launches are left out by a CUDA graph."""
        if self.device.type != "cuda":
            return self.seconds_of(call)
        return self.seconds_of(replayed(call, REPEATS)) / REPEATS

    def waited(self, call: Callable[[], object]) -> Callable[[], object]:
        """Return the call, made to wait until the device has done it."""
        if self.device.type != "cuda":
            return call

        def run() -> None:
            call()
            torch.cuda.synchronize()

        return run

    def race(
        self, section: str, calls: Mapping[str, Callable[[], object]], batch: int, need: float, what: str
    ) -> None:
        """Time all calls in turn; keep rates, and the line of our quickest against their quickest."""
        times = interleaved.times_in_turn(
            {name: self.waited(call) for name, call in calls.items()}, self.sample * len(calls)
        )
        medians = {name: float(np.median(values)) for name, values in times.items()}
        self.sections[section]["patterns_per_second"] = {
            name: round(batch / value) for name, value in medians.items()
        }
        ours = min((name for name in calls if name.startswith("ours")), key=medians.__getitem__)
        other = min((name for name in calls if not name.startswith("ours")), key=medians.__getitem__)
        ratio = interleaved.ratio_of(times[other], times[ours])
        name = f"{section}: {ours} against {other}, batch {batch}"
        complete = any(one.startswith("compiled") for one in calls) and self.device.type == "cuda"
        agreement = self.sections[section].get(what, "")
        self.lines.append(
            report.Line(
                name,
                need if complete else None,
                ratio,
                medians[ours] / batch,
                medians[other] / batch,
                agreement,
            )
        )


def _largest_batch() -> int:
    """Return the power of two that torch's own operators have memory for."""
    free, _ = torch.cuda.mem_get_info()
    return min(LARGEST_BATCH, 2 ** (max(1, free // BYTES_A_PATTERN).bit_length() - 1))


def forward(bench: Bench, variant: str, compiled: bool) -> None:
    """Time the forward pass of every contestant whose logits are right."""
    name = f"forward, {variant}" + ("" if compiled else ", nothing compiled")
    with bench.section(name):
        if bench.out_of_time():
            return
        setting = bench.setting(variant)
        x_B1L = setting.patterns(bench.batch)
        calls = forward_calls(setting, x_B1L, compiled)
        bench.sections[name]["agreement"] = _logit_agreement(bench, setting, x_B1L, calls)
        bench.race(name, calls, bench.batch, NEEDED_FORWARD, "agreement")
        rate = max(
            value
            for key, value in bench.sections[name]["patterns_per_second"].items()
            if key.startswith("ours")
        )
        bench.sections[name]["rate"] = rate
        if bench.device.type == "cuda":
            bench.sections[name] |= {"rate_asked_for": NEEDED_RATE, "rate_met": rate >= NEEDED_RATE}


def _logit_agreement(bench: Bench, setting: Setting, x_B1L: Tensor, calls: dict[str, Step]) -> str:
    """Remove the calls whose logits are not those of float32; say how the others agree."""
    some = x_B1L[:CHECKED]
    with exact_float32(), torch.inference_mode():
        expected = PlainNetwork(setting.model().eval(), "channels-first")(some)
    worst, agreeing = 0.0, 1.0
    for name in list(calls):
        logits = calls[name]()[:CHECKED].float()
        error = relative_error(logits, expected)
        if not error <= BOUNDS[bench.dtype]:
            bench.wrong.append(f"{name}: logits are off by {error:.2g}")
            del calls[name]
            continue
        worst = max(worst, error)
        agreeing = min(agreeing, float((logits.argmax(1) == expected.argmax(1)).float().mean()))
    return f"logits within {worst:.1e} of float32, top-1 agrees on {agreeing:.1%}"


def training(bench: Bench, variant: str, compiled: bool) -> None:
    """Time a whole training step, mixed precision, dropout on."""
    name = f"training, {variant}" + ("" if compiled else ", nothing compiled")
    with bench.section(name):
        if bench.out_of_time():
            return
        setting, batch = bench.setting(variant), bench.training_batch
        x_B1L = setting.patterns(batch)
        labels_B = torch.arange(batch, device=bench.device) % 144
        error = gradient_error(setting, x_B1L[:64], labels_B[:64])
        if not error <= BOUNDS[bench.dtype]:
            raise ValueError(f"our gradients are off by {error:.2g}")
        bench.sections[name]["agreement"] = f"gradients without dropout within {error:.1e} of float32"
        steps = training_steps(setting, x_B1L, labels_B, DROPOUT, compiled)
        bench.race(name, steps, batch, NEEDED_TRAINING, "agreement")


def roofline(bench: Bench, variant: str) -> None:
    """Time each fused stage alone against the ceilings of a copy and of a matrix product."""
    name = f"roofline, {variant}"
    with bench.section(name), torch.inference_mode():
        if bench.out_of_time():
            return
        copied = copy_ceiling(bench.device, 2**22 if bench.tiny else 2**31, bench.seconds_of)
        multiplied = product_ceiling(bench.device, 256 if bench.tiny else 8192, bench.dtype, bench.seconds_of)
        setting = bench.setting(variant)
        model = setting.model().eval().to(bench.dtype)
        rows = []
        for stage in stages(model, bench.batch, setting.n_points, bench.dtype, bench.backend):
            seconds = bench.device_seconds_of(stage.call)
            n_bytes = stage.values * bench.dtype.itemsize
            to_copy, to_multiply = n_bytes / copied, stage.operations / multiplied
            rows.append(
                {
                    "stage": stage.name,
                    "MB": round(n_bytes / 1e6, 3),
                    "GFLOP": round(stage.operations / 1e9, 3),
                    "us": round(seconds * 1e6, 1),
                    "GB_per_s": round(n_bytes / seconds / 1e9, 1),
                    "TFLOP_per_s": round(stage.operations / seconds / 1e12, 2),
                    "bound": "memory" if to_copy > to_multiply else "arithmetic",
                    "share_of_copy": round(to_copy / seconds, 3),
                    "share_of_product": round(to_multiply / seconds, 3),
                }
            )
        bench.sections[name] |= {
            "batch": bench.batch,
            "copy_GB_per_s": round(copied / 1e9, 1),
            "product_TFLOP_per_s": round(multiplied / 1e12, 3),
            "stages": rows,
            "stages_us": round(sum(row["us"] for row in rows), 1),
        }


def main() -> int:
    """Run the sections in the order of their worth; each is written as soon as it is done."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--json", type=Path, help="also write the figures there")
    parser.add_argument("--tiny", action="store_true", help="a few patterns, to see that all of it runs")
    parser.add_argument("--seconds", type=float, default=600, help="no section begins after that")
    parser.add_argument("--batch", type=int, help="patterns (default 16384 on a GPU)")
    parser.add_argument("--precision", choices=("bf16", "fp32"), default="bf16")
    bench = Bench(parser.parse_args())
    with contextlib.suppress(KeyboardInterrupt):
        roofline(bench, "paper")
        if not bench.tiny:
            forward(bench, "paper", compiled=False)
        training(bench, "paper", compiled=False)
        with bench.section("end to end"):
            if not bench.out_of_time():
                with tempfile.TemporaryDirectory() as folder:
                    bench.sections["end to end"] |= end_to_end(Path(folder), bench.device, bench.tiny)
        forward(bench, "paper", compiled=True)
        if not bench.tiny:
            training(bench, "paper", compiled=True)
            roofline(bench, "released")
            forward(bench, "released", compiled=True)
            training(bench, "released", compiled=True)
    bench.write()
    _tell(bench)
    return 1 if bench.wrong else 0


def _tell(bench: Bench) -> None:
    for name, found in bench.sections.items():
        print(f"\n{name}")
        for row in found.get("stages", []):
            print("  ", "  ".join(f"{key} {value}" for key, value in row.items()))
        for key, value in found.items():
            if key != "stages":
                print(f"   {key}: {value}")
    if bench.lines:
        print("\n" + report.table(bench.lines))
    for problem in bench.wrong:
        print(f"WRONG: {problem}")


def _version(package: str) -> str:
    import importlib.metadata

    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return "missing"


if __name__ == "__main__":
    raise SystemExit(main())
