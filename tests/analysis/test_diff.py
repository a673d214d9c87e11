"""`surgery.diff` as a whole: its figures against plain formulas, its directory, kills and resumption."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import scipy.linalg
import torch

import surgery
from surgery.analysis import figures, run, store
from surgery.analysis.comparison import Comparison
from surgery.analysis.diff import LIBRARIES_BYTES, make_matching
from surgery.errors import CheckpointError, NumericalError, OutputError, PlanError
from tests.pairs import LLAMA_CONFIG, files, llama, near, read, write

CONFIG = {**LLAMA_CONFIG, "hidden_size": 16, "num_attention_heads": 4, "num_key_value_heads": 2}
Weights = dict[str, torch.Tensor]


def models(tmp_path: Path, *tensors: Weights) -> list[Path]:
    """Checkpoints named base, sft and rl."""
    return [
        write(tmp_path / name, found, config=CONFIG)
        for name, found in zip(("base", "sft", "rl"), tensors, strict=False)
    ]


@pytest.fixture
def three(tmp_path: Path) -> list[Path]:
    """Base, SFT and RL of a tiny model in float64, whose figures can be held to 1e-7."""
    base = llama(width=16, vocabulary=40, dtype=torch.float64)
    sft = near(base, seed=1, change=0.1)
    return models(tmp_path, base, sft, near(sft, seed=2, change=0.02))


@pytest.fixture
def undrawn(monkeypatch: pytest.MonkeyPatch) -> None:
    """No figures, which take seconds: for tests of what is on the disk."""
    monkeypatch.setattr(figures, "draw", lambda *_: ())


def row(found: Comparison, matrix: str, before: str = "base", after: str = "sft") -> Any:
    """The one row of a matrix and pair."""
    table = found.matrices
    (chosen,) = table[(table.matrix == matrix) & (table.before == before) & (table.after == after)].itertuples()
    return chosen


def test_figures_are_those_of_plain_formulas(three: list[Path]) -> None:
    """Every column of every matrix and pair, against NumPy's SVD and SciPy's subspace angles in float64."""
    found = surgery.diff(*three)
    weights = {path.name: {k: v.double().numpy() for k, v in read(path).items()} for path in three}
    assert len(found.matrices) == 3 * 16
    for each in found.matrices.itertuples():
        W, A = (weights[model][each.matrix] for model in (each.before, each.after))
        U, S, Vh = np.linalg.svd(W, full_matrices=False)
        U2, S2, Vh2 = np.linalg.svd(A, full_matrices=False)
        D, r = A - W, each.rank
        assert (each.rows, each.cols, each.known) == (*W.shape, min(W.shape))
        assert r == max(1, int(0.2 * each.known + 0.5))
        left = scipy.linalg.subspace_angles(U[:, :r], U2[:, :r])
        right = scipy.linalg.subspace_angles(Vh[:r].T, Vh2[:r].T)
        expected = {
            "relative_change": np.linalg.norm(D) / np.linalg.norm(W),
            "energy_ratio": np.linalg.norm(A) ** 2 / np.linalg.norm(W) ** 2,
            "values_change": np.linalg.norm(S2 - S) / np.linalg.norm(S),
            "values_max_change": abs(S2 - S).max(),
            "stable_rank_before": np.linalg.norm(W) ** 2 / S[0] ** 2,
            "effective_rank_after": np.exp(-(S2 / S2.sum() * np.log(S2 / S2.sum())).sum()),
            "angle_left": left.mean(),
            "angle_right_max": right.max(),
            "rotation": (left.mean() + right.mean()) / 2,
            "cos_left": abs((U * U2).sum(0))[:r].mean(),
            "cos_right": abs((Vh * Vh2).sum(1))[:r].mean(),
            "change_energy": np.linalg.norm(D) ** 2,
            "diagonal_share": ((U.T @ D @ Vh.T).diagonal() ** 2).sum() / np.linalg.norm(D) ** 2,
            "change_stable_rank": np.linalg.norm(D) ** 2 / np.linalg.norm(D, 2) ** 2,
        }
        for column, value in expected.items():
            assert getattr(each, column) == pytest.approx(value, abs=1e-7, rel=1e-6), (each.matrix, column)
        assert each.intruders_left == (abs(U.T @ U2).max(0)[:r] < 0.5).sum()
        assert each.intruders_right == (abs(Vh @ Vh2.T).max(0)[:r] < 0.5).sum()
        angles = found.spectra[f"{each.matrix}/angles_left@20%/{each.before}>{each.after}"]
        np.testing.assert_allclose(angles, left[::-1], atol=1e-7)
        change = found.spectra[f"{each.matrix}/change_values/{each.before}>{each.after}"]
        np.testing.assert_allclose(change, np.linalg.svd(D, compute_uv=False), atol=1e-9)
        np.testing.assert_allclose(found.spectra[f"{each.matrix}/values/{each.before}"], S, atol=1e-9)


def test_a_third_model_and_the_way_back(three: list[Path]) -> None:
    """`moved_back` is the projection on the first change, on the row base -> third only."""
    found = surgery.diff(*three)
    assert found.pairs == (("base", "sft"), ("base", "rl"), ("sft", "rl"))
    name = "model.layers.1.mlp.up_proj.weight"
    base, sft, rl = (read(path)[name] for path in three)
    expected = float(((sft - rl) * (sft - base)).sum() / (sft - base).square().sum())
    assert row(found, name, "base", "rl").moved_back == pytest.approx(expected)
    assert np.isnan(row(found, name, "base", "sft").moved_back)
    assert np.isnan(row(found, name, "sft", "rl").moved_back)


def test_a_way_all_the_way_back(tmp_path: Path) -> None:
    """A third model that equals the base has moved back wholly, and its row is one of equals."""
    base = llama()
    found = surgery.diff(*models(tmp_path, base, near(base), base))
    rows = found.matrices[found.matrices.after == "rl"]
    assert (rows.moved_back[rows.before == "base"] - 1).abs().max() < 1e-6
    assert rows.equal[rows.before == "base"].all()


def test_equal_models_give_zeros(tmp_path: Path) -> None:
    """No change is rounding or NaN; cosines are 1; of nothing there are no shares."""
    base = llama(width=16)
    base["model.layers.0.mlp.up_proj.weight"].zero_()  # which has no directions at all
    found = surgery.diff(*models(tmp_path, base, base))
    table = found.matrices
    assert table.equal.all()
    zeros = ["relative_change", "values_change", "values_max_change", "rotation", "angle_left_max", "change_energy"]
    zeros += ["intruders_left", "intruders_right", "change_stable_rank", "change_rank_90"]
    assert (table[zeros] == 0).all(axis=None)
    assert (table[["cos_left", "cos_right", "energy_ratio"]] == 1).all(axis=None)
    assert (found.gauge[["change", "rotation", "aligned_change", "remainder"]] == 0).all(axis=None)
    shares = ["diagonal_share", "values_head_share", "values_tail_share", "change_head_share", "moved_back"]
    assert table[shares].isna().all(axis=None)
    assert found.gauge.explained.isna().all()


def rotated(W: torch.Tensor, theta: float, side: str) -> torch.Tensor:
    """W with its leading singular vector of one side turned by theta towards one that it does not have."""
    U, S, Vh = torch.linalg.svd(W)
    vectors = U if side == "left" else Vh.mT
    first, last = vectors[:, 0].clone(), vectors[:, -1].clone()
    turned = vectors.clone()
    turned[:, 0] = np.cos(theta) * first + np.sin(theta) * last
    turned[:, -1] = np.cos(theta) * last - np.sin(theta) * first
    k = len(S)
    U, Vh = (turned, Vh) if side == "left" else (U, turned.mT)
    return U[:, :k] * S @ Vh[:k]


@pytest.mark.parametrize("side", ["left", "right"])
@pytest.mark.parametrize("theta", [1e-6, 1e-3, 0.4, np.pi / 2])
def test_a_known_rotation_comes_out(tmp_path: Path, side: str, theta: float) -> None:
    """One direction turned by theta: an angle of theta and zeros on that side, nothing on the other, no new values."""
    base = llama(width=16, dtype=torch.float64)
    name = "model.layers.0.mlp.up_proj.weight" if side == "left" else "model.layers.0.mlp.down_proj.weight"
    sft = base | {name: rotated(base[name], theta, side)}
    found = surgery.diff(*models(tmp_path, base, sft), ranks=[4])
    angles = found.spectra[f"{name}/angles_{side}@4/base>sft"]
    np.testing.assert_allclose(angles, [0, 0, 0, theta], atol=1e-7)
    other = found.spectra[f"{name}/angles_{'right' if side == 'left' else 'left'}@4/base>sft"]
    np.testing.assert_allclose(other, 0, atol=1e-7)
    assert row(found, name).values_change < 1e-9


def test_scaled_values_turn_nothing(tmp_path: Path) -> None:
    """Other values on the same directions: no angles, all of the change on the diagonal."""
    base = llama(width=16, dtype=torch.float64)
    sft = dict(base)
    for name, W in base.items():
        if W.ndim == 2:
            U, S, Vh = torch.linalg.svd(W, full_matrices=False)
            sft[name] = U * (S * torch.linspace(1.3, 1.1, len(S), dtype=torch.float64)) @ Vh
    found = surgery.diff(*models(tmp_path, base, sft))
    assert found.matrices.angle_left_max.max() < 1e-7
    assert found.matrices.angle_right_max.max() < 1e-7
    assert (found.matrices.diagonal_share - 1).abs().max() < 1e-9
    assert found.matrices.values_change.min() > 0.1


def test_a_pure_gauge_change_changes_no_function(tmp_path: Path) -> None:
    """An orthogonal map of each key/value head's inner space: all is explained, nothing remains."""
    base = llama(width=16, dtype=torch.float64)
    sft = dict(base)
    generator = torch.Generator().manual_seed(3)
    for layer in range(2):
        v, o = (f"model.layers.{layer}.self_attn.{x}_proj.weight" for x in "vo")
        R = [torch.linalg.qr(torch.randn(4, 4, generator=generator, dtype=torch.float64)).Q for _ in range(2)]
        sft[v] = torch.block_diag(*R) @ base[v]
        sft[o] = base[o] @ torch.block_diag(R[0], R[0], R[1], R[1]).mT
    found = surgery.diff(*models(tmp_path, base, sft))
    assert len(found.gauge) == 4
    assert found.gauge.change.min() > 0.1
    assert (1 - found.gauge.explained).max() < 1e-7
    assert found.gauge.remainder.max() < 1e-7


def test_a_matrix_without_full_rank_is_compared_where_it_has_directions(tmp_path: Path) -> None:
    """Of rank 2, turned: the rank is cut to 2, and its subspace's angle is right."""
    base = llama(width=16, dtype=torch.float64)
    name = "model.layers.0.mlp.up_proj.weight"
    U, S, Vh = torch.linalg.svd(base[name], full_matrices=False)
    base[name] = U[:, :2] * S[:2] @ Vh[:2]
    found = surgery.diff(*models(tmp_path, base, base | {name: rotated(base[name], 0.2, "left")}), ranks=[5])
    assert row(found, name).rank == 2
    np.testing.assert_allclose(found.spectra[f"{name}/angles_left@5/base>sft"], [0, 0.2], atol=1e-7)


def test_quick_agrees_with_all_directions(three: list[Path]) -> None:
    """What both measure is the same; what needs all directions is left out, not made up."""
    full, quick = surgery.diff(*three), surgery.diff(*three, quick=True, ranks=["20%", "5%"])
    same = ["relative_change", "energy_ratio", "rotation", "angle_left", "cos_left", "rank", "stable_rank_after"]
    np.testing.assert_allclose(quick.matrices[same].astype(float), full.matrices[same].astype(float), atol=1e-7)
    missing = ["change_stable_rank", "effective_rank_before", "values_head_share", "change_head_share"]
    assert quick.matrices[missing].isna().all(axis=None)
    assert not any("change_values" in name for name in quick.spectra)


def test_embedding_and_head(three: list[Path]) -> None:
    """Their row spaces against each other in each model, as SciPy sees them."""
    found = surgery.diff(*three)
    for path in three:
        tensors = read(path)
        E, H = (np.linalg.svd(tensors[f"{name}.weight"].numpy())[2] for name in ("model.embed_tokens", "lm_head"))
        expected = scipy.linalg.subspace_angles(E[:3].T, H[:3].T)
        (each,) = found.embeddings[(found.embeddings.model == path.name) & (found.embeddings["rank"] == 3)].itertuples()
        assert each.angle == pytest.approx(expected.mean(), abs=1e-7)
        assert each.alignment == pytest.approx((np.cos(expected) ** 2).mean(), abs=1e-7)
    assert not any("/right/" in name for name in found.spectra)


def test_results_do_not_depend_on_workers_or_shards(three: list[Path], tmp_path: Path) -> None:
    """Byte for byte, whatever the number of workers, the memory, and the files that the weights are in."""
    other = [write(tmp_path / "sharded" / path.name, read(path), shards=3, config=CONFIG) for path in three]
    one = surgery.diff(*three, workers=1)
    order = ["matrix", "before", "after"]
    expected = one.matrices.sort_values(order, ignore_index=True)
    for again in (surgery.diff(*three, workers=3), surgery.diff(*other, workers=2, memory=700_000_000)):
        found = again.matrices.sort_values(order, ignore_index=True)
        pd.testing.assert_frame_equal(found, expected, check_exact=True)
        assert all(np.array_equal(again.spectra[name], array) for name, array in one.spectra.items())


def test_values_that_are_not_numbers_are_told(tmp_path: Path) -> None:
    """File, tensor and model are named, and nothing is written at OUT."""
    base = llama()
    broken = near(base)
    broken["model.layers.1.mlp.up_proj.weight"][0, 0] = float("nan")
    with pytest.raises(NumericalError, match=r"`model.layers.1.mlp.up_proj.weight` of `sft` \(`model.safetensors`\)"):
        surgery.diff(*models(tmp_path, base, broken), out=tmp_path / "out")
    assert not (tmp_path / "out").exists()


# The directory


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> tuple[list[Path], Path]:
    """Two models and the directory of their comparison."""
    place = tmp_path_factory.mktemp("finished")
    base = llama(width=16)
    pair = models(place, base, near(base))
    surgery.diff(*pair, out=place / "out")
    return pair, place / "out"


def test_the_directory_holds_everything(finished: tuple[list[Path], Path]) -> None:
    """Tables, spectra, report, figures in both formats, and a summary that is plain JSON; nothing beside it."""
    pair, out = finished
    names = {path.relative_to(out).as_posix() for path in out.rglob("*") if path.is_file()}
    assert {"matrices.parquet", "gauge.parquet", "embeddings.parquet", "spectra.npz"} <= names
    assert {"summary.json", "report.html"} <= names
    drawn = {name.split(".")[0] for name in names if name.startswith("figures/")}
    assert len(drawn) >= 6
    assert all(f"{name}.{kind}" in names for name in drawn for kind in ("png", "svg"))
    summary = json.loads((out / "summary.json").read_text(), parse_constant=lambda constant: pytest.fail(constant))
    assert summary["pairs"]["base>sft"]["matrices"] == 16
    assert {path.name for path in out.parent.iterdir()} == {"base", "sft", "out"}
    assert pd.read_parquet(out / "matrices.parquet").matrix.nunique() == 16
    with np.load(out / "spectra.npz") as spectra:
        assert len(spectra["lm_head.weight/values/base"]) == 16
    assert pair[0].exists()


def test_a_finished_comparison_is_only_read(finished: tuple[list[Path], Path], monkeypatch: pytest.MonkeyPatch) -> None:
    """The same command again measures nothing and changes nothing."""
    pair, out = finished
    before = files(out)
    monkeypatch.setattr(run, "measure_matrix", lambda *_, **__: pytest.fail("measured again"))
    found = surgery.diff(*pair, out=out)
    assert len(found.matrices) == 16
    assert files(out) == before


def test_another_comparison_is_not_replaced_unasked(finished: tuple[list[Path], Path]) -> None:
    """Other ranks, and OUT stays; a directory that holds something else is not replaced at all."""
    pair, out = finished
    before = files(out)
    with pytest.raises(OutputError, match=r"exists already; choose another OUT, or add `--overwrite`"):
        surgery.diff(*pair, out=out, quick=True)
    with pytest.raises(OutputError, match="is, contains or lies inside the input"):
        surgery.diff(*pair, out=pair[0] / "report", overwrite=True)
    (out.parent / "other").mkdir()
    (out.parent / "other" / "thesis.tex").write_text("years")
    with pytest.raises(OutputError, match="holds no comparison; `--overwrite` replaces comparisons only"):
        surgery.diff(*pair, out=out.parent / "other", overwrite=True)
    (out.parent / "other" / "thesis.tex").unlink()
    (out.parent / "other").rmdir()
    assert files(out) == before


@pytest.mark.usefixtures("undrawn")
def test_overwrite_replaces(tmp_path: Path) -> None:
    """The new comparison takes the whole place of the old one."""
    base = llama(layers=1)
    pair = models(tmp_path, base, near(base))
    surgery.diff(*pair, out=tmp_path / "out")
    found = surgery.diff(*pair, out=tmp_path / "out", quick=True, overwrite=True)
    assert found.quick
    assert store.read(tmp_path / "out").quick
    assert {path.name for path in tmp_path.iterdir()} == {"base", "sft", "out"}


@pytest.mark.usefixtures("undrawn")
@pytest.mark.parametrize("damage", ["summary.json", "spectra.npz", "matrices.parquet"])
def test_a_damaged_comparison_is_told(tmp_path: Path, damage: str) -> None:
    """One message that says what was expected."""
    base = llama(layers=1)
    surgery.diff(*models(tmp_path, base, near(base)), out=tmp_path / "out")
    (tmp_path / "out" / damage).write_bytes(b"{")
    with pytest.raises(CheckpointError, match="holds no comparison that can be read"):
        store.read(tmp_path / "out")


def test_a_file_that_is_gone_is_made_again(tmp_path: Path) -> None:
    """A comparison without its report is not finished: it is an output to be replaced, and only when told."""
    base = llama(layers=1)
    pair = models(tmp_path, base, near(base))
    surgery.diff(*pair, out=tmp_path / "out")
    (tmp_path / "out" / "report.html").unlink()
    with pytest.raises(OutputError, match="exists already"):
        surgery.diff(*pair, out=tmp_path / "out")
    surgery.diff(*pair, out=tmp_path / "out", overwrite=True)
    assert (tmp_path / "out" / "report.html").exists()


def test_without_a_place_nothing_is_left(three: list[Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """No file remains, and the spectra can be read all the same."""
    (tmp_path / "temporary").mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "temporary"))
    found = surgery.diff(*three[:2])
    assert not list((tmp_path / "temporary").iterdir())
    assert len(found.spectra["lm_head.weight/values/base"]) == 16


def test_one_rank_and_one_tensor_may_stand_alone(three: list[Path]) -> None:
    """Text is not taken letter by letter; no direction at all is an error."""
    found = surgery.diff(*three[:2], ranks="25%", tensors="mlp", exclude="*.up_proj.*")
    assert found.ranks == ("25%",)
    assert set(found.matrices.module) == {"mlp.gate_proj", "mlp.down_proj"}
    with pytest.raises(ValueError, match="expected at least 1 direction"):
        surgery.diff(*three[:2], ranks=[0])


def test_other_heads_are_another_comparison(tmp_path: Path) -> None:
    """What the configuration says of the heads counts, though no tensor differs."""
    base = llama(layers=1, width=16)
    pair = models(tmp_path, base, near(base))
    hashes = [make_matching(pair).hash]
    for path in pair:
        (path / "config.json").write_text(json.dumps({**CONFIG, "head_dim": 2}))
    assert make_matching(pair).hash not in hashes


def test_extreme_weights(tmp_path: Path) -> None:
    """Float64 weights whose squares overflow or vanish have norms all the same; an overflow of a change is told."""
    for scale in (1e160, 1e-170):
        base = {k: scale * v for k, v in llama(layers=1, width=8, dtype=torch.float64).items()}
        place = tmp_path / str(scale)
        found = surgery.diff(*models(place, base, {k: 1.5 * v for k, v in base.items()}), tensors=["mlp"])
        np.testing.assert_allclose(found.matrices.relative_change, 0.5)
    base = {k: torch.full_like(v, 3e38) for k, v in llama(layers=1).items()}
    with pytest.raises(NumericalError, match="the change, whose size is beyond"):
        surgery.diff(*models(tmp_path, base, {k: -v for k, v in base.items()}))


def test_two_attention_modules_in_a_layer(tmp_path: Path) -> None:
    """Self- and cross-attention each have their heads' rows, and the figures are drawn."""
    base = llama(layers=2, width=16)
    base |= {name.replace("self_attn", "cross_attn"): 2 * W for name, W in base.items() if "self_attn" in name}
    found = surgery.diff(*models(tmp_path, base, near(base)), out=tmp_path / "out")
    assert len(found.gauge) == 2 * 2 * 2
    assert set(found.gauge.module) == {"self_attn", "cross_attn"}
    assert not found.gauge.duplicated(["layer", "module", "head"]).any()


def test_a_head_that_only_one_model_ties(tmp_path: Path) -> None:
    """Of the tied model the two are the same; of the other nothing is said; its own head is told to be left out."""
    base = llama(tied=True)
    paths = models(tmp_path, base, llama(seed=1))
    (paths[0] / "config.json").write_text(json.dumps({**CONFIG, "tie_word_embeddings": True}))
    found = surgery.diff(*paths)
    assert set(found.embeddings.model) == {"base"}
    assert any("`lm_head.weight`: left out, since `sft` has them and `base` does not" in r for r in found.remarks)


def stop_after(count: int, action: Callable[[], None]) -> Callable[..., Any]:
    """`measure_matrix`, but for an action before the measurement of that number."""
    real, calls = run.measure_matrix, iter(range(1_000_000))

    def measured(*args: Any, **kwargs: Any) -> Any:
        if next(calls) == count:
            action()
        return real(*args, **kwargs)

    return measured


@pytest.mark.usefixtures("undrawn")
def test_an_interrupted_run_goes_on(three: list[Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What was measured is not measured again, damaged parts are, and the result is that of an undisturbed run."""
    undisturbed = surgery.diff(*three)

    def fail() -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr(run, "measure_matrix", stop_after(9, fail))
        with pytest.raises(KeyboardInterrupt):
            surgery.diff(*three, out=tmp_path / "out", workers=1)
    assert not (tmp_path / "out").exists()
    parts = sorted((tmp_path / "out.partial" / "measured").iterdir())
    assert len(parts) == 9
    parts[3].write_bytes(b"damaged")
    again = []
    with monkeypatch.context() as patched:
        real = run.measure_matrix
        patched.setattr(run, "measure_matrix", lambda *a, **k: again.append(a[0].name) or real(*a, **k))
        found = surgery.diff(*three, out=tmp_path / "out", workers=1)
    assert len(again) == 16 - 8
    pd.testing.assert_frame_equal(found.matrices, undisturbed.matrices, check_exact=True)
    assert all(np.array_equal(found.spectra[name], array) for name, array in undisturbed.spectra.items())


@pytest.mark.usefixtures("undrawn")
def test_leftovers_of_another_comparison(three: list[Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """They are refused, and dropped by `fresh`."""

    def fail() -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr(run, "measure_matrix", stop_after(2, fail))
        with pytest.raises(KeyboardInterrupt):
            surgery.diff(*three, out=tmp_path / "out")
    with pytest.raises(OutputError, match="left from another comparison"):
        surgery.diff(*three[:2], out=tmp_path / "out")
    assert len(surgery.diff(*three[:2], out=tmp_path / "out", fresh=True).models) == 2


SCRIPT = """
import os, signal, sys
import surgery
from surgery.analysis import figures, {module} as module
figures.draw = lambda *_: ()
calls = iter(range(1000))
real = module.{function}
def killed(*args, **kwargs):
    if next(calls) == {count}:
        os.kill(os.getpid(), signal.SIGKILL)
    return real(*args, **kwargs)
module.{function} = killed
surgery.diff(sys.argv[1], sys.argv[2], out=sys.argv[3], workers=2)
"""


@pytest.mark.usefixtures("undrawn")
@pytest.mark.parametrize(
    ("module", "function", "count"),
    [
        *(
            ("run", "measure_matrix", 5),
            ("run", "measure_attention", 0),
            ("store", "_add", 40),
            ("store", "as_json", 0),
        ),
        ("store", "Unfinished.publish", 0),
        ("store", "shutil.rmtree", 0),
    ],
)
def test_a_kill_loses_only_what_was_at_hand(tmp_path: Path, module: str, function: str, count: int) -> None:
    """While measuring or putting spectra together, before the summary, the rename, the cleaning up: the same command
    ends it, to the same rows.
    """
    base = llama(width=16)
    pair = models(tmp_path, base, near(base))
    script = SCRIPT.format(module=module, function=function, count=count)
    done = subprocess.run([sys.executable, "-c", script, *map(str, pair), tmp_path / "out"], check=False)
    assert done.returncode == -signal.SIGKILL
    assert (tmp_path / "out").exists() == (function == "shutil.rmtree")
    found = surgery.diff(*pair, out=tmp_path / "out")
    assert not (tmp_path / "out" / "measured").exists()
    pd.testing.assert_frame_equal(found.matrices, surgery.diff(*pair).matrices, rtol=1e-9)  # another process's bits
    assert {path.name for path in tmp_path.iterdir()} == {"base", "sft", "out"}


@pytest.mark.usefixtures("undrawn")
def test_a_full_disk_is_told_and_survived(three: list[Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The message says what to do; once there is room the run goes on."""
    real, calls = Path.write_bytes, iter(range(1000))

    def full(path: Path, data: bytes) -> int:
        if "measured" in path.parts and next(calls) > 4:
            raise OSError(28, os.strerror(28))
        return real(path, data)

    with monkeypatch.context() as patched:
        patched.setattr(Path, "write_bytes", full)
        with pytest.raises(OutputError, match=r"No space left on device; make room, and run the same command again"):
            surgery.diff(*three, out=tmp_path / "out")
    assert not (tmp_path / "out").exists()
    assert len(surgery.diff(*three, out=tmp_path / "out").matrices) == 48


def test_memory_too_small_is_told_first(three: list[Path], tmp_path: Path) -> None:
    """Before anything is read or written."""
    with pytest.raises(PlanError, match="raise `--memory` to at least"):
        surgery.diff(*three, out=tmp_path / "out", memory=1000)
    assert not list(tmp_path.glob("out*"))


def test_decompositions_are_shared_with_apply(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What `apply` decomposed at the same rank a comparison does not decompose again, and the other way round."""
    monkeypatch.setenv("SURGERY_CACHE", str(tmp_path / "cache"))
    generator = torch.Generator().manual_seed(0)
    base = {"model.layers.0.mlp.up_proj.weight": torch.randn(320, 300, generator=generator)}
    base |= {"model.layers.0.self_attn.q_proj.weight": torch.randn(8, 300, generator=generator)}
    base |= {"model.embed_tokens.weight": torch.randn(10, 300, generator=generator)}
    pair = models(tmp_path, base, near(base))
    from surgery.spectral import decomposer

    counted: list[tuple[int, ...]] = []
    real = decomposer.outer_triplets
    monkeypatch.setattr(decomposer, "outer_triplets", lambda W, *a: counted.append(tuple(W.shape)) or real(W, *a))
    surgery.apply("restore-top-20pct", pair, tmp_path / "edited", settings={"head": "20%"})
    assert counted.count((320, 300)) == 2
    surgery.diff(*pair, quick=True, ranks=["20%"], tensors=["mlp"])
    surgery.apply("restore-top-20pct-rotate", pair, tmp_path / "again", settings={"head": "20%"})
    assert counted.count((320, 300)) == 2


MEMORY = """
import sys
import surgery
surgery.diff(sys.argv[1], sys.argv[2], out=sys.argv[4], workers=2, memory=int(sys.argv[3]), cache=False)
print(open("/proc/self/status").read())
"""


def test_memory_does_not_grow_with_the_layers(tmp_path: Path) -> None:
    """Twice as many layers take as much, figures included, and no more than `memory`, the least that is accepted."""
    peaks = {}
    for layers in (2, 4):
        base = llama(layers=layers, width=448, vocabulary=64)
        paths = models(tmp_path / str(layers), base, near(base))
        limit = make_matching(paths).peak_memory(1, LIBRARIES_BYTES)
        done = subprocess.run(
            [sys.executable, "-c", MEMORY, *map(str, paths), str(limit), tmp_path / f"out{layers}"],
            capture_output=True, text=True, check=True,
        )  # fmt: skip
        peak = re.search(r"VmHWM:\s*(\d+) kB", done.stdout)  # `getrusage` would count the parent's memory too
        assert peak is not None
        peaks[layers] = 1024 * int(peak[1])
        assert peaks[layers] <= limit
    assert peaks[4] <= 1.1 * peaks[2]
