"""Rates of the classifier on the CPU against its peers, and of a training step, taken in turn within one run.

    python benchmarks/bench_classify.py [--quick] [--only WORD] [--json OUT]
    pytest benchmarks/bench_classify.py -s

What each line means stands in benchmarks/README.md. No ratio is given before the classes were seen to agree.
"""

import argparse
import json
import os
import tempfile
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")  # as `hxrd train` does; no peer is slower for it

import msgspec
import numpy as np
import pytest
import torch
from classify_contestants import MANY, Classifier, Floats, best_setting, ours, peers
from classify_patterns import Patterns, real_patterns, write_archive
from classify_work import PRODUCT_OPERATIONS, large_product, operations_of
from interleaved import Times, ratio_of, times_in_turn
from network_contestants import BOUNDS, Setting, gradient_error, training_steps
from report import Line, record, table

from hxrd.classify.backends import choose_backend
from hxrd.cli.main import main as hxrd
from hxrd.cores import available_cores
from hxrd.kernels.cpu_network import has_bfloat16
from hxrd.models.registry import LoadedModel, load_model

MODEL, WITH_BACKGROUND = "neutron-clean", "neutron"
VARIANTS = ("paper", "released")
LEAST_AGREEMENT = 0.995  # of our first ranks
LEAST_OF_OTHERS = (
    0.9  # of peers in bf16, and of all where weights were trained in the other variant: near-ties
)
FARTHEST_ACCURACY = 0.002
FEWEST_DIFFERENT = 2  # patterns: a share of a few hundred means no more
NEEDS_WITH_BF16 = {
    "onnxruntime fp32": 2.2,
    "openvino bf16": 1.25,
    "release's layout eager fp32": 8.0,
    "release's layout eager fp32, as called": 8.0,
}
NEEDS_WITHOUT = {"onnxruntime fp32": 1.0}
NEEDED_TRAINING, NEEDED_END_TO_END = 2.0, 0.9
MOST_TRIED = 512  # patterns with which a peer's best setting is found
TRAINING_BATCH = 128  # the recipe's own
DROPOUT = 0.1


class Disagreement(AssertionError):
    """Two classifiers give different classes, so there is nothing to time."""


@dataclass(frozen=True)
class Effort:
    """How to measure: seconds a section, least rounds, patterns judged, timed, in the archive, of a step."""

    seconds: float
    rounds: int
    judged: int
    timed: dict[str, int]
    archived: int
    batch: int = TRAINING_BATCH


FULL = Effort(60.0, 5, 4000, {"paper": 2048, "released": 256}, 100_000)
QUICK = Effort(1.0, 2, 300, {"paper": 256, "released": 32}, 1024, 32)


@dataclass
class Found:
    """Lines of the table, and by section what else was measured."""

    lines: list[Line]
    details: dict[str, Any]


# Classifying -----------------------------------------------------------------------------------------


def as_variant(loaded: LoadedModel, variant: str) -> LoadedModel:
    """Return the same weights in a variant; in the one they were not trained in the answers mean nothing."""
    return replace(loaded, metadata=msgspec.structs.replace(loaded.metadata, variant=variant))


@dataclass(frozen=True)
class Judge:
    """Compares first ranks with those of the reference, and with the truth."""

    reference: Floats
    labels: np.ndarray

    def accuracy(self, logits: Floats) -> float:
        return float(np.mean(logits.argmax(axis=1) == self.labels))

    def agreement(self, logits: Floats) -> float:
        return float(np.mean(logits.argmax(axis=1) == self.reference.argmax(axis=1)))

    def check(self, name: str, logits: Floats, least: float, trained: bool) -> dict[str, float]:
        """Return agreement and accuracy; raise `Disagreement` where they are not enough."""
        agreement, accuracy = self.agreement(logits), self.accuracy(logits)
        apart = abs(accuracy - self.accuracy(self.reference)) if trained else 0.0
        slack = FEWEST_DIFFERENT / len(self.labels)
        too_far = least == LEAST_AGREEMENT and apart > max(FARTHEST_ACCURACY, slack)
        if agreement < min(least, 1 - slack) or too_far:
            raise Disagreement(
                f"{name}: first rank as the reference's for {agreement:.2%}, accuracy {apart:.2%} apart"
            )
        found = {"top_1_agreement": round(agreement, 5)}
        return found | {"top_1_accuracy": round(accuracy, 5)} if trained else found


def classifying(variant: str, effort: Effort) -> Found:
    """Our native back end against other engines on the same weights and patterns."""
    loaded = as_variant(load_model(MODEL), variant)
    patterns = real_patterns(loaded, effort.judged)
    few = effort.timed[variant]
    trained = variant == load_model(MODEL).metadata.variant
    judged = patterns.inputs(loaded)[: None if trained else 4 * few]
    timed_x = np.resize(judged, (few, judged.shape[1]))
    half = has_bfloat16()
    contestants = {f"ours {precision}": ours(loaded, precision) for precision in our_precisions(half)}
    chosen: dict[str, str] = {}
    for name, settings in peers(loaded, half).items():
        chosen[name] = best_setting(settings, timed_x[:MOST_TRIED])
        contestants[name] = settings[chosen[name]]
    scores = judgements(contestants, judged, patterns.labels(loaded)[: len(judged)], trained)
    products = {precision: large_product(precision) for precision in our_precisions(half)}
    calls = {name: (lambda c=one: c(timed_x)) for name, one in contestants.items()}
    times = times_in_turn(calls | products, effort.seconds, effort.rounds)
    products_times = {precision: times.pop(precision) for precision in products}
    lines = ratios(variant, times, scores, few, half)
    details = {
        "patterns_judged": f"{len(judged)} {patterns.origin}",
        "patterns_timed": few,
        "settings": chosen,
        "scores": scores,
        "rates": rates(times, few, operations_of(loaded.metadata), products_times),
    }
    return Found(lines, details)


def our_precisions(half: bool) -> list[str]:
    """Return ``auto`` first: bf16 where the processor has it."""
    return ["bf16", "fp32"] if half else ["fp32"]


def judgements(
    contestants: dict[str, Classifier], x: Floats, labels: np.ndarray, trained: bool
) -> dict[str, dict[str, float]]:
    """Return how each contestant does on the patterns; all must agree with eager torch in float32."""
    judge = Judge(contestants["release's layout eager fp32"](x), labels)
    return {
        name: judge.check(
            name, one(x), LEAST_AGREEMENT if trained and "ours" in name else LEAST_OF_OTHERS, trained
        )
        for name, one in contestants.items()
    }


def ratios(variant: str, times: Times, scores: dict[str, dict[str, float]], n: int, half: bool) -> list[Line]:
    """Return a line for each of our precisions and each peer."""
    lines = []
    for mine in (name for name in times if "ours" in name):
        needs = NEEDS_WITH_BF16 if "bf16" in mine else {} if half else NEEDS_WITHOUT
        for other in (name for name in times if "ours" not in name):
            lines.append(
                Line(
                    f"{variant}, a pattern, {mine} against {other}",
                    needs.get(other),
                    ratio_of(times[other], times[mine]),
                    float(np.median(times[mine])) / n,
                    float(np.median(times[other])) / n,
                    f"top-1 as fp32 in {scores[mine]['top_1_agreement']:.2%}",
                )
            )
    return lines


def rates(times: Times, n: int, operations: int, products: Times) -> dict[str, dict[str, float]]:
    """Return patterns/s, operations/s and the share of a large matrix product's of the same rounds."""
    found: dict[str, dict[str, float]] = {}
    for name, seconds in times.items():
        precision = "bf16" if "bf16" in name or "AMP" in name else "fp32"
        work_over_product = n * operations / PRODUCT_OPERATIONS
        found[name] = {
            "patterns_per_second": round(n / float(np.median(seconds))),
            "gflops": round(n * operations / float(np.median(seconds)) / 1e9, 1),
            f"share_of_{precision}_gemm": round(
                work_over_product * float(np.median(products[precision] / seconds)), 3
            ),
        }
    gemm = {
        f"{precision}_gflops": round(PRODUCT_OPERATIONS / float(np.median(seconds)) / 1e9, 1)
        for precision, seconds in products.items()
    }
    return found | {"gemm": gemm}


# The whole command -----------------------------------------------------------------------------------


def end_to_end(effort: Effort) -> Found:
    """`hxrd classify` from archive to Parquet file against its network alone on as many prepared patterns."""
    loaded = load_model(MODEL)
    patterns = real_patterns(loaded, effort.judged)
    x, n = patterns.inputs(loaded), effort.archived
    alone = choose_backend(loaded, "cpu", n_patterns=MANY)
    with tempfile.TemporaryDirectory() as folder:
        archive = write_archive(Path(folder) / "patterns.zarr", patterns, n)
        check_results(archive, alone.logits, patterns, loaded)
        contestants: dict[str, Callable[[], object]] = {
            "network alone": lambda: [alone.logits(x[: min(len(x), n - i)]) for i in range(0, n, len(x))],
            "hxrd classify": lambda: classify(archive, MODEL),
            "hxrd classify, background removed": lambda: classify(archive, WITH_BACKGROUND),
        }
        times = times_in_turn(contestants, effort.seconds, effort.rounds)
    network = times["network alone"]
    lines = [
        Line(
            f"rate of {name}, archive to Parquet, over the network's alone",
            NEEDED_END_TO_END if name == "hxrd classify" else None,
            ratio_of(network, seconds),
            float(np.median(seconds)) / n,
            float(np.median(network)) / n,
        )
        for name, seconds in times.items()
        if seconds is not network
    ]
    per_second = {name: round(n / float(np.median(seconds))) for name, seconds in times.items()}
    return Found(lines, {"patterns": n, "precision": alone.precision, "patterns_per_second": per_second})


def classify(archive: Path, model: str) -> Path:
    """Run the command within this process; return its Parquet file."""
    output = archive.with_name("result.parquet")
    code = hxrd(
        ["classify", str(archive), "-o", str(output), "--model", model, "--force", "-q", "--device", "cpu"]
    )
    if code != 0:
        raise RuntimeError(f"hxrd classify ended with exit code {code}")
    return output


def check_results(archive: Path, logits: Classifier, patterns: Patterns, loaded: LoadedModel) -> None:
    """See that the command's first ranks are the network's."""
    import pyarrow.parquet as parquet

    columns = parquet.read_table(classify(archive, loaded.metadata.name)).to_pydict()
    n = min(len(patterns), len(columns["pattern"]))
    expected = logits(patterns.inputs(loaded)[:n]).argmax(axis=1)
    groups = np.array(loaded.metadata.classes)[expected]
    same = np.mean(groups == np.array([group or 0 for group in columns["space_group_1"]])[:n])
    # Enantiomorphic twins are one entry with the lower number, and near-ties may fall to the other side.
    if same < 0.9:
        raise Disagreement(f"hxrd classify: first rank as the network's for {same:.1%} only")


# Training --------------------------------------------------------------------------------------------


def training(effort: Effort) -> Found:
    """One step of AdamW, ours against torch's own operators under autocast, the better of two layouts."""
    half = has_bfloat16()
    dtype = torch.bfloat16
    loaded = load_model(MODEL)
    patterns = real_patterns(loaded, effort.batch)
    rows = np.resize(np.arange(len(patterns)), effort.batch)
    x_B1L = torch.from_numpy(patterns.inputs(loaded)[rows])[:, None]
    labels_B = torch.from_numpy(patterns.labels(loaded)[rows])
    torch.set_num_threads(available_cores())
    lines, details = [], {}
    for variant in VARIANTS if effort.seconds > QUICK.seconds else VARIANTS[:1]:
        setting = Setting(torch.device("cpu"), dtype, variant, x_B1L.shape[2], "auto", {})
        apart = gradient_error(setting, x_B1L[:16], labels_B[:16])
        if apart > BOUNDS[dtype]:
            raise Disagreement(f"training, {variant}: gradients are {apart:.2g} from torch's own in fp32")
        steps = training_steps(setting, x_B1L, labels_B, DROPOUT, compiled=False)
        times = times_in_turn(steps, effort.seconds, effort.rounds)
        mine = times.pop("ours")
        best = min(times, key=lambda name: float(np.median(times[name])))
        lines.append(
            Line(
                f"{variant} variant, training step of {effort.batch} patterns against {best}, bf16 autocast",
                NEEDED_TRAINING if half and variant == "paper" else None,
                ratio_of(times[best], mine),
                float(np.median(mine)),
                float(np.median(times[best])),
                f"gradients {apart:.1g} from fp32",
            )
        )
        medians = {name: float(np.median(seconds)) for name, seconds in (times | {"ours": mine}).items()}
        details[variant] = {name: round(effort.batch / seconds) for name, seconds in medians.items()}
    return Found(lines, {"patterns_per_second": details})


SECTIONS: dict[str, Callable[[Effort], Found]] = {
    "classify_paper": lambda effort: classifying("paper", effort),
    "classify_released": lambda effort: classifying("released", effort),
    "end_to_end": end_to_end,
    "training": training,
}


# As tests: agreement only -----------------------------------------------------------------------------


@pytest.mark.parametrize("name", SECTIONS)
def test_section_agrees(name: str) -> None:
    """Each section raises `Disagreement` before it times anything; figures are printed."""
    if "classify" in name:
        pytest.importorskip("onnxruntime")
        pytest.importorskip("openvino")
    found = SECTIONS[name](QUICK)
    print(f"\n{table(found.lines)}")
    assert found.lines


def main() -> None:
    """Run the sections that were asked for, print them, and write JSON."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--json", type=Path, help="write figures, hardware, versions and commit to this file")
    parser.add_argument("--quick", action="store_true", help="few patterns and rounds")
    parser.add_argument("--only", default="", help="sections whose name contains this word")
    options = parser.parse_args()
    effort = QUICK if options.quick else FULL
    lines: list[Line] = []
    details: dict[str, Any] = {}
    for name, section in SECTIONS.items():
        if options.only not in name:
            continue
        found = section(effort)
        print(f"\n{name}\n{table(found.lines)}\n{json.dumps(found.details, indent=1)}", flush=True)
        lines += found.lines
        details[name] = found.details
    if options.json:
        chosen = [
            *(["--quick"] if options.quick else []),
            *(["--only", options.only] if options.only else []),
        ]
        command = " ".join(["python benchmarks/bench_classify.py", *chosen])
        written = record(lines, details, "wall") | {"threads": available_cores(), "command": command}
        options.json.write_text(json.dumps(written, indent=1, ensure_ascii=False) + "\n", "utf-8")


if __name__ == "__main__":
    main()
