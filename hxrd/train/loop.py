"""The supervised training loop: one device, mixed precision, resumable after every epoch.

Shape suffixes: B batch, L points of a pattern, K classes.
"""

import copy
import json
import logging
import math
import time
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from hxrd.errors import InputError
from hxrd.models.resnet1d import ResNet1D
from hxrd.train.config import Recipe
from hxrd.train.streams import ArchiveStream, Validation, WorkerStream, epoch_chunks

logger = logging.getLogger(__name__)

_BATCHES_A_CHUNK = 4


class Trainer:
    """A model being trained, with all that is needed to go on after an interruption.

    Parameters
    ----------
    recipe : Recipe
    n_classes : int
    seed : int
    device : torch.device
    """

    def __init__(self, recipe: Recipe, n_classes: int, seed: int, device: torch.device):
        torch.manual_seed(seed)
        self.recipe, self.seed, self.device = recipe, seed, device
        self.model = ResNet1D(n_classes, recipe.variant, recipe.dropout).to(device)
        self.average = copy.deepcopy(self.model).requires_grad_(False).eval()
        self.optimizer = torch.optim.AdamW(
            _decay_groups(self.model, recipe.weight_decay), recipe.learning_rate, betas=(0.9, 0.99)
        )
        self.loss = nn.CrossEntropyLoss(label_smoothing=recipe.label_smoothing)
        self.epoch = 0
        self.step = 0

    def run(
        self,
        stream: ArchiveStream | WorkerStream,
        validation: Validation,
        checkpoint: Path,
        log: Path,
        advance: Callable[[int], None],
    ) -> None:
        """Train until the recipe's last epoch; a line of the log and a checkpoint after each.

        The line comes first, so a kill between the two leaves one too many and never one too few:
        `trim_log` takes it away.
        """
        while self.epoch < self.recipe.epochs:
            began = time.perf_counter()
            loss = self._train_epoch(stream, advance)
            self.epoch += 1
            scores = self.evaluate(validation)
            record = {
                "epoch": self.epoch,
                "loss": round(loss, 5),
                "learning_rate": self.learning_rate(),
                "validation": {name: round(value, 5) for name, value in scores.items()},
                "seconds": round(time.perf_counter() - began, 1),
            }
            with log.open("a", encoding="utf-8") as stream_out:
                stream_out.write(json.dumps(record) + "\n")
            self.save(checkpoint)
            logger.info(
                "epoch %d of %d: loss %.3f, validation top-1 %.1f %%, top-5 %.1f %%, %.0f s",
                self.epoch,
                self.recipe.epochs,
                loss,
                100 * scores["top_1"],
                100 * scores["top_5"],
                record["seconds"],
            )

    def _train_epoch(self, stream: ArchiveStream | WorkerStream, advance: Callable[[int], None]) -> float:
        self.model.train()
        size = self.recipe.batch_size
        steps_before = self.epoch * self._steps(stream)
        total, seen = 0.0, 0
        self.step = steps_before
        for patterns, labels in epoch_chunks(stream, self.epoch, size * _BATCHES_A_CHUNK, self.seed):
            mixed = np.random.default_rng([self.seed, 3, self.step]).permutation(len(labels))
            for first in range(0, len(labels), size):
                rows = mixed[first : first + size]
                loss = self._train_step(
                    torch.from_numpy(patterns[rows]),
                    torch.from_numpy(labels[rows]),
                    self.recipe.epochs * self._steps(stream),
                )
                total += loss * len(rows)
                seen += len(rows)
                advance(len(rows))
        return total / seen

    def _steps(self, stream: ArchiveStream | WorkerStream) -> int:
        return math.ceil(len(stream.labels) / self.recipe.batch_size)

    def _train_step(self, patterns_BL: Tensor, labels_B: Tensor, all_steps: int) -> float:
        for group in self.optimizer.param_groups:
            group["lr"] = one_cycle(self.step / all_steps, self.recipe)
        self.optimizer.zero_grad(set_to_none=True)
        loss = self.loss(self._logits(self.model, patterns_BL), labels_B.to(self.device))
        loss.backward()
        norm = nn.utils.clip_grad_norm_(self.model.parameters(), self.recipe.clip_norm)
        if not torch.isfinite(norm):
            raise InputError(f"training diverged at step {self.step}: lower learning_rate in the recipe")
        self.optimizer.step()
        self._update_average()
        self.step += 1
        return float(loss.detach())

    def learning_rate(self) -> float:
        """Return the rate of the last step."""
        return float(self.optimizer.param_groups[0]["lr"])

    @torch.no_grad()
    def _update_average(self) -> None:
        # The average warms up, so that the random start is soon forgotten.
        decay = min(self.recipe.average_decay, (1 + self.step) / (10 + self.step))
        torch._foreach_lerp_(list(self.average.parameters()), list(self.model.parameters()), 1 - decay)

    def _logits(self, model: ResNet1D, patterns_BL: Tensor) -> Tensor:
        x_B1L = patterns_BL.to(self.device)[:, None]
        if self.recipe.input_transform == "sqrt":
            x_B1L = x_B1L.sqrt()
        half = self.recipe.precision == "bf16"
        with torch.autocast(self.device.type, torch.bfloat16, enabled=half):
            return model(x_B1L).float()

    @torch.no_grad()
    def logits(self, patterns: NDArray[np.float32]) -> NDArray[np.float32]:
        """Return the averaged model's logits, shape (n, n_classes)."""
        parts = [
            self._logits(self.average, torch.from_numpy(patterns[first : first + 256])).cpu().numpy()
            for first in range(0, len(patterns), 256)
        ]
        return np.concatenate(parts)

    def evaluate(self, validation: Validation) -> dict[str, float]:
        """Return loss, top-1 and top-5 of the averaged model."""
        logits = torch.from_numpy(self.logits(validation.patterns))
        labels = torch.from_numpy(validation.labels)
        ranked = logits.topk(min(5, logits.shape[1]), dim=1).indices == labels[:, None]
        return {
            "loss": float(nn.functional.cross_entropy(logits, labels)),
            "top_1": float(ranked[:, 0].float().mean()),
            "top_5": float(ranked.any(dim=1).float().mean()),
        }

    def save(self, path: Path) -> None:
        """Write a checkpoint; a reader sees the old one or the new one, never half of it."""
        state = {
            "recipe": json.dumps(msgspec.to_builtins(self.recipe)),
            "seed": self.seed,
            "epoch": self.epoch,
            "model": self.model.state_dict(),
            "average": self.average.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "random": torch.get_rng_state(),
        }
        part = path.with_name(path.name + ".part")
        torch.save(state, part)
        part.replace(path)

    def start_from(self, weights: dict[str, Tensor]) -> None:
        """Take over the weights of a trained model of the same layout and classes."""
        self.model.load_state_dict(weights)
        self.average.load_state_dict(weights)

    def restore(self, path: Path) -> None:
        """Go on from a checkpoint.

        Raises
        ------
        InputError
            It cannot be read, or belongs to another recipe or seed.
        """
        try:
            with zipfile.ZipFile(path) as parts:  # torch does not look at the checksums that it writes
                if parts.testzip() is not None:
                    raise zipfile.BadZipFile("a checksum is wrong")
            state: dict[str, Any] = torch.load(path, map_location=self.device, weights_only=True)
            same = state["recipe"] == json.dumps(msgspec.to_builtins(self.recipe))
            if not same or state["seed"] != self.seed:
                raise InputError(
                    f"checkpoint {path} is of another recipe or seed; "
                    "give those, or --force in place of --resume"
                )
            self.model.load_state_dict(state["model"])
            self.average.load_state_dict(state["average"])
            self.optimizer.load_state_dict(state["optimizer"])
            torch.set_rng_state(state["random"].cpu())
            self.epoch = int(state["epoch"])
        except InputError:
            raise
        except Exception as error:
            raise InputError(
                f"checkpoint {path} is damaged, or none of hxrd; give --force in place of --resume"
            ) from error


def trim_log(log: Path, n_epochs: int) -> None:
    """Keep the lines of the first epochs, those that a checkpoint stands for."""
    if log.exists():
        lines = log.read_text(encoding="utf-8").splitlines(keepends=True)
        log.write_text("".join(lines[:n_epochs]), encoding="utf-8")


def one_cycle(progress: float, recipe: Recipe) -> float:
    """Return the learning rate after a part `progress` of all steps: linear rise, then a cosine to zero."""
    if progress < recipe.warm_up:
        return recipe.learning_rate * (0.04 + 0.96 * progress / recipe.warm_up)
    fall = (progress - recipe.warm_up) / (1 - recipe.warm_up)
    return recipe.learning_rate * max(0.5 * (1 + math.cos(math.pi * fall)), 1e-4)


def _decay_groups(model: nn.Module, weight_decay: float) -> list[dict[str, Any]]:
    """Decay the convolutions and the classifier, not the normalisations and biases."""
    matrices = [p for p in model.parameters() if p.ndim > 1]
    vectors = [p for p in model.parameters() if p.ndim <= 1]
    return [
        {"params": matrices, "weight_decay": weight_decay},
        {"params": vectors, "weight_decay": 0.0},
    ]
