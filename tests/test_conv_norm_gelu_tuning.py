"""Tiles: heuristics, trials with a made-up clock, and what is remembered on disk."""

import json
from pathlib import Path

import pytest
import torch
from conv_norm_gelu_cases import DEVICE, OBSTACLE, PAIRS

pytestmark = pytest.mark.skipif(bool(OBSTACLE), reason=f"the Triton kernel cannot run here: {OBSTACLE}")

if not OBSTACLE:
    from hxrd.kernels import conv_norm_gelu_tuning as tuning
    from hxrd.kernels.conv_norm_gelu_launch import Geometry, Launch
    from hxrd.kernels.conv_norm_gelu_tiles import KINDS, Tile, candidates, for_few_rows, heuristic

LARGE = (4096, 128, 128, 64, 64, 7, 1, 3)


@pytest.fixture
def pretended_gpu(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """A GPU whose quickest tile is always the last candidate; return the folder of what is remembered."""
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "is_current_stream_capturing", lambda: False)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: "Pretended GPU")
    monkeypatch.setattr(tuning, "user_cache_path", lambda name: tmp_path)
    monkeypatch.setattr(tuning, "_known", {})
    monkeypatch.setattr(tuning, "quickest", lambda tiles, prepare: tiles[-1])
    monkeypatch.delenv(tuning.SWITCH, raising=False)
    return tmp_path / "tiles"


def chosen(kind: str = "forward", sizes: tuple[int, ...] = LARGE) -> "Tile":
    return tuning.choose_tile(kind, torch.device("cuda"), torch.bfloat16, Geometry(*sizes))


def usual(kind: str = "forward") -> "Tile":
    return heuristic(kind, 64, 64, 7, 2)


def test_a_trial_is_made_once_and_remembered(pretended_gpu: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    best = candidates("forward", 64, 64, 7, 2)[-1]
    assert best != usual()
    assert chosen() == best
    (file,) = pretended_gpu.iterdir()
    assert json.loads(file.read_text())["tiles"] == {"forward 64 64 7 bfloat16": best.as_dict()}
    monkeypatch.setattr(tuning, "quickest", lambda tiles, prepare: pytest.fail("tried again"))
    assert chosen() == best
    monkeypatch.setattr(tuning, "_known", {})  # a new process
    assert chosen() == best


def test_when_no_trial_is_made(pretended_gpu: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    small = (1, *LARGE[1:])
    assert chosen(sizes=small) == for_few_rows("forward", usual(), 2) != usual()
    monkeypatch.setenv(tuning.SWITCH, "0")
    assert chosen() == usual()
    monkeypatch.delenv(tuning.SWITCH)
    with monkeypatch.context() as capturing:
        capturing.setattr(torch.cuda, "is_current_stream_capturing", lambda: True)
        assert chosen() == usual()
    assert not pretended_gpu.exists()
    assert chosen() != usual()
    assert tuning.choose_tile("forward", torch.device("cpu"), torch.bfloat16, Geometry(*LARGE)) == usual()


@pytest.mark.parametrize("content", ["", "[]", '{"tiles": {"forward 64 64 7 bfloat16": {"block": 3}}}'])
def test_a_broken_file_is_written_anew(
    pretended_gpu: Path, monkeypatch: pytest.MonkeyPatch, content: str
) -> None:
    best = chosen()
    (file,) = pretended_gpu.iterdir()
    file.write_text(content)
    monkeypatch.setattr(tuning, "_known", {})
    assert chosen() == best
    assert list(pretended_gpu.iterdir()) == [file]
    assert "forward 64 64 7 bfloat16" in json.loads(file.read_text())["tiles"]


def test_an_error_of_a_trial_is_seen(pretended_gpu: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object) -> None:
        raise RuntimeError("no kernel image")

    monkeypatch.setattr(tuning, "quickest", fail)
    with pytest.raises(RuntimeError, match="no kernel image"):
        chosen()


def test_the_quickest_that_fits_and_does_not_spill(monkeypatch: pytest.MonkeyPatch) -> None:
    from triton.runtime.errors import OutOfResources

    class Compiled:
        def __init__(self, tile: Tile):
            self.tile, self.n_spills = tile, tile.num_warps == 1

    class Prepared(Launch):
        def run_now(self) -> Compiled:
            if self.options["num_stages"] > 4:
                raise OutOfResources(1, 0, "shared memory")
            return Compiled(Tile(*(self.options[name] for name in ("BLOCK_M", "BLOCK_K", "num_warps")), 3))

    monkeypatch.setattr("triton.testing.do_bench", lambda run, **_: 1 / run().tile.block_m)
    tiles = [Tile(32, 16, 4, 3), Tile(64, 16, 4, 3), Tile(128, 16, 1, 3), Tile(256, 16, 4, 5)]
    assert tuning.quickest(tiles, lambda tile: Prepared(None, (), {}, tile.options)) == tiles[1]
    assert tuning.quickest(tiles[2:], lambda tile: Prepared(None, (), {}, tile.options)) == tiles[2]


@pytest.mark.parametrize("kind", ["forward", "rows", "input", "weight"])
def test_every_candidate_can_be_tried(kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """What a trial launches writes finite numbers over all it should, and all tiles the same."""
    assert kind in KINDS
    monkeypatch.setattr(tuning, "TRIAL", (2, 33))
    conv = PAIRS[1]
    results = []
    tiles = {
        tile for itemsize in (2, 4) for tile in candidates(kind, conv.c_in, conv.c_out, conv.taps, itemsize)
    }
    assert len(tiles) > 3
    for tile in tiles:
        torch.manual_seed(0)
        prepared = tuning.trial(kind, conv.c_in, conv.c_out, conv.taps, tile, torch.float32, DEVICE)
        target = {"forward": "out_ptr", "rows": "grad_conv_ptr", "input": "grad_x_ptr"}
        result = prepared.arguments[target.get(kind, "grad_weight_ptr")]
        result.zero_()
        prepared.run_now()
        results.append(result.flatten()[: conv.taps * conv.c_in * conv.c_out])
    assert results[0].isfinite().all()
    assert results[0].any()
    for result in results[1:]:
        assert torch.allclose(result, results[0], rtol=1e-4, atol=1e-4)
