"""The paths that the passes can take: compiled kernels, torch operations, a GPU. All give the same."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest
import torch

import byzflow
from byzflow.engine import cuda, kernels
from byzflow.engine.passes import column_pass, combine_pass, gram_pass, norm_pass
from byzflow.errors import ByzflowError, NonFiniteRows
from byzflow.gram import Gram
from byzflow.ranks import ClampedMean, Deviated, NearestMean, RankMean, median, network
from byzflow.rows import Mixed, Rows

needs_kernels = pytest.mark.skipif(kernels.library() is None, reason="no compiled kernels here")
needs_gpu = pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU here")
SPECS = ["median", "meamed", "winsorized_mean", "krum", "nnm", "nnm | trimmed_mean", "bulyan", "arc | geometric_median"]


def rows(n: int, d: int, dtype: torch.dtype = torch.float32, seed: int = 0) -> list[torch.Tensor]:
    return list(torch.randn(n, d, generator=torch.Generator().manual_seed(seed)).to(dtype))


def rules(n: int) -> list[RankMean]:
    f = (n - 1) // 3
    nearest = NearestMean(*median(n).ranks(n), n - f)
    return [median(n), RankMean(f, n - f), ClampedMean(f, n - f), nearest, Deviated(0, 0, 0, -0.5)]


@pytest.mark.parametrize("n", [1, 2, 3, 5, 8, 13, 32, 100])
def test_a_pruned_network_sorts_the_ranks_that_are_needed(n: int) -> None:
    x = torch.randn(n, 50, generator=torch.Generator().manual_seed(n))
    for low, high in {(0, n), (n // 2, n // 2 + 1), (n // 4, n - n // 4)}:
        y = x.clone()
        for a, b, kept in network(n, low, high).tolist():
            least, most = torch.minimum(y[a], y[b]), torch.maximum(y[a], y[b])
            y[a] = least if kept & 1 else torch.nan
            y[b] = most if kept & 2 else torch.nan
        assert torch.equal(y[low:high], x.sort(0).values[low:high])


@needs_kernels
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.float16, torch.bfloat16])
@pytest.mark.parametrize(("n", "d"), [(1, 1), (2, 63), (7, 64), (10, 1000), (33, 129), (64, 300), (130, 70)])
def test_kernels_rank_as_torch_does(n: int, d: int, dtype: torch.dtype) -> None:
    x = rows(n, d, dtype)
    for rule in rules(n):
        (got,), bad = column_pass(Rows.of(x), rule, rule=rule)
        expected = rule(torch.stack(x).to(torch.promote_types(dtype, torch.float32))).to(dtype)
        torch.testing.assert_close(got[0], expected, rtol=2 * torch.finfo(dtype).eps, atol=1e-12)
        assert not bad.any()


@needs_kernels
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_the_gram_of_kernels_is_that_of_torch(dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch) -> None:
    for n, d in ((1, 5), (3, 1), (6, 700), (17, 513), (70, 300)):
        x = Rows.of([1000 + row for row in rows(n, d, dtype)])
        got, _ = gram_pass(x, [x.vector("center", torch.ones(d, dtype=dtype))])
        with monkeypatch.context() as context:
            context.setattr(kernels, "library", lambda: None)
            expected, _ = gram_pass(x, [x.vector("center", torch.ones(d, dtype=dtype))])

        def distances(inner: torch.Tensor) -> torch.Tensor:
            return inner.diagonal()[:, None] + inner.diagonal() - 2 * inner

        torch.testing.assert_close(distances(got), distances(expected), rtol=1e-12, atol=1e-6)
        assert torch.equal(got, got.T)


@needs_kernels
def test_kernels_find_rows_that_are_not_finite(monkeypatch: pytest.MonkeyPatch) -> None:
    for value in (torch.nan, torch.inf, -torch.inf):
        for dtype in (torch.float32, torch.float64):
            for place in (0, 64, 199):
                x = rows(9, 200, dtype)
                x[4][place] = value
                wanted = torch.arange(9) == 4
                assert torch.equal(column_pass(Rows.of(x), median(9), rule=median(9))[1], wanted)
                inner, bad = gram_pass(Rows.of(x), [])
                assert torch.equal(bad, wanted)
                assert torch.isfinite(inner).all()


@needs_kernels
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_threads_and_where_they_cut_do_not_matter(dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch) -> None:
    x, threads = rows(12, 100_003, dtype), torch.get_num_threads()
    mixing = torch.rand(12, 12, generator=torch.Generator().manual_seed(1), dtype=torch.float64)

    def results() -> tuple[list[torch.Tensor], torch.Tensor]:
        source = Rows.of(x)
        ranked = [column_pass(source, rule, rule=rule)[0][0][0] for rule in rules(12)]
        return [*ranked, combine_pass(Mixed([source], mixing))[5][0]], gram_pass(source, [])[0]

    try:
        torch.set_num_threads(1)
        ranked, inner = results()
        for count, split in ((2, 1 << 15), (2, 1000), (5, 777)):
            torch.set_num_threads(count)
            monkeypatch.setattr(kernels, "SPLIT", split)
            again, inner_again = results()
            assert all(torch.equal(a, b) for a, b in zip(ranked, again, strict=True))
            torch.testing.assert_close(inner_again, inner, rtol=1e-12, atol=1e-12 * float(inner.max()))
    finally:
        torch.set_num_threads(threads)


@pytest.mark.parametrize("spec", SPECS)
def test_each_path_gives_the_same(spec: str) -> None:
    """Forced by the environment, in a process of its own, as a user would."""
    program = (
        "import sys, torch, byzflow\n"
        "x = torch.randn(12, 3000, generator=torch.Generator().manual_seed(5))\n"
        f"torch.save(byzflow.aggregate({spec!r}, x, f=2), sys.argv[1])\n"
    )
    got = run_with("torch", program)
    here = byzflow.aggregate(spec, torch.randn(12, 3000, generator=torch.Generator().manual_seed(5)), f=2)
    torch.testing.assert_close(here, got, rtol=1e-6, atol=1e-6)


def run_with(choice: str, program: str) -> torch.Tensor:
    import tempfile
    from pathlib import Path

    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder, "value.pt")
        environment = os.environ | {kernels.CHOICE: choice}
        subprocess.run([sys.executable, "-c", program, str(file)], check=True, env=environment, timeout=120)
        return torch.load(file, weights_only=True)  # type: ignore[no-any-return]


def test_the_choice_of_the_path(monkeypatch: pytest.MonkeyPatch) -> None:
    try:
        for choice, words in (("torch", "torch, because BYZFLOW_KERNELS=torch"), ("auto", "")):
            kernels.library.cache_clear()
            monkeypatch.setenv(kernels.CHOICE, choice)
            assert words in kernels.active()
        kernels.library.cache_clear()
        monkeypatch.setattr(kernels, "LIBRARY", "/nowhere/_kernels.so")
        assert "no compiled kernels" in kernels.active()
        kernels.library.cache_clear()
        monkeypatch.setenv(kernels.CHOICE, "c")
        with pytest.raises(ByzflowError, match="install byzflow with a compiler"):
            kernels.library()
        kernels.library.cache_clear()
        monkeypatch.setenv(kernels.CHOICE, "fast")
        with pytest.raises(ByzflowError, match="must be auto, c or torch"):
            kernels.library()
    finally:
        kernels.library.cache_clear()


@needs_gpu
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("spec", SPECS)
def test_a_gpu_gives_the_same(spec: str, dtype: torch.dtype) -> None:
    x = torch.stack(rows(12, 70_000, dtype))
    value = byzflow.aggregate(spec, x.cuda(), f=2)
    assert value.is_cuda
    torch.testing.assert_close(value.cpu(), byzflow.aggregate(spec, x, f=2))


@needs_gpu
def test_the_gpu_kernel_is_there_and_finds_nan() -> None:
    assert cuda.kernel() is not None
    x = torch.stack(rows(12, 70_000))
    x[3, 69_999] = torch.nan
    assert byzflow.parse("median", f=2).explain(x.cuda()).rejected == (3,)


def test_the_plan_says_what_is_read() -> None:
    chain = byzflow.parse("arc | nnm | trimmed_mean", f=2).plan(10, 1_000_000)
    assert [each.what for each in chain.passes] == ["Gram of 10 rows", "mix into 10 and rank"]
    assert chain.passes[0].bytes == 40_000_000
    assert chain.milliseconds > 0
    assert "mix into 10 and rank" in str(chain)
    assert [each.what for each in byzflow.parse("median").plan(10, 1000).passes] == ["rank"]
    assert len(byzflow.parse("aksel", f=2).plan(10, 1000).passes) == 3
    with pytest.raises(ByzflowError, match="needs at least 7 senders"):
        byzflow.parse("krum", f=2).plan(6, 1000)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
def test_norms_are_measured_without_the_products(dtype: torch.dtype) -> None:
    for n, d in ((1, 1), (5, 31), (7, 64), (3, 1000)):
        x = rows(n, d, dtype)
        inner, bad = norm_pass(Rows.of(x))
        torch.testing.assert_close(inner.diagonal()[:n], torch.stack(x).double().square().sum(1))
        assert not bad.any()
        for value in (torch.nan, torch.inf, -torch.inf):
            x[n - 1][d - 1] = value
            inner, bad = norm_pass(Rows.of(x))
            assert bad.tolist() == [False] * (n - 1) + [True]
            assert torch.isfinite(inner).all()


def test_a_rule_that_declares_norms_may_not_ask_for_distances() -> None:
    gram = Gram(torch.eye(4, dtype=torch.float64), 3, norms_only=True)
    assert gram.squared_norms.tolist() == [2, 2, 2]
    with pytest.raises(RuntimeError, match="declare 'distances'"):
        _ = gram.squared_distances
    with pytest.raises(RuntimeError, match="declare 'distances'"):
        _ = gram.products


@pytest.mark.parametrize("spec", ["mean", "cge", "clipping(c=3)", "arc", "normalize", "bucketing", "arc | median"])
def test_with_norms_alone_the_result_is_the_same(spec: str, monkeypatch: pytest.MonkeyPatch) -> None:
    x = torch.stack(rows(9, 400))
    x[2, 5] = torch.nan
    light = byzflow.parse(spec, f=2).explain(x)
    monkeypatch.setattr("byzflow.engine.execute._needs_norms_at_most", lambda operator: False)
    whole = byzflow.parse(spec, f=2).explain(x)
    torch.testing.assert_close(light.value, whole.value)
    torch.testing.assert_close(light.weights, whole.weights)
    assert light.rejected == whole.rejected == (2,)


@pytest.mark.parametrize("spec", ["median", "meamed", "mean"])
def test_more_rows_than_kernels_take_go_by_torch(spec: str) -> None:
    x = torch.randn(kernels.MAX_POINTS + 1, 3, generator=torch.Generator().manual_seed(0))
    before = network.cache_info().currsize
    value = byzflow.aggregate(spec, x, f=5)
    assert network.cache_info().currsize == before
    torch.testing.assert_close(value, x.median(0).values if spec == "median" else x.mean(0), atol=0.05, rtol=0)


@needs_kernels
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("n", [*range(1, 35), 48, 64, 65, 97])
def test_each_length_of_a_run_ranks_as_torch_does(n: int, dtype: torch.dtype) -> None:
    """Networks are made for some lengths; the others are filled up, and what is beyond one run is merged."""
    for d in (1, 15, 16, 17, 63, 64, 65):
        plain = torch.stack(rows(n, d, dtype, seed=n))
        ties = plain.round()
        huge = plain.clone()
        huge[n // 2] = 1e30
        huge[0, ::2] = -torch.finfo(torch.float32).max
        huge[-1, ::3] = torch.finfo(torch.float32).max
        for x, rule in ((x, rule) for x in (plain, ties, huge) for rule in rules(n)):
            (got,), bad = column_pass(Rows.of(list(x)), rule, rule=rule)
            expected = rule(x)
            scale = float(expected.abs().max())
            torch.testing.assert_close(got[0].double(), expected, rtol=torch.finfo(dtype).eps, atol=1e-15 * scale)
            assert not bad.any()


@needs_kernels
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("n", [*range(1, 35), 65])
def test_each_row_that_is_not_finite_is_found(n: int, dtype: torch.dtype) -> None:
    for k in {0, n // 2, n - 1}:
        for place, value in ((0, torch.nan), (15, -torch.inf), (64, torch.inf), (69, -torch.nan)):
            x = rows(n, 70, dtype)
            x[k][place] = value
            _, bad = column_pass(Rows.of(x), median(n), rule=median(n))
            assert bad.tolist() == [i == k for i in range(n)]


@needs_kernels
@pytest.mark.parametrize("n", [3, 10, 31, 70])
def test_a_column_ranks_alike_wherever_it_lies(n: int) -> None:
    x = torch.stack(rows(n, 300))
    for rule in rules(n):
        (whole,), _ = column_pass(Rows.of(x), rule, rule=rule)
        for a, b in ((0, 1), (5, 205), (63, 64), (100, 300), (299, 300)):
            (got,), _ = column_pass(Rows.of([row[a:b] for row in x]), rule, rule=rule)
            assert torch.equal(got[0], whole[0][a:b])


@needs_kernels
@pytest.mark.parametrize("n", [1, 6, 17, 31, 40])
def test_mixed_rows_are_ranked_as_their_values_are(n: int) -> None:
    mixing = torch.rand(n, 9, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    for d in (1, 63, 64, 65, 200):
        mixed = Mixed([Rows.of(rows(9, d))], mixing)
        values = torch.stack([answer[0] for answer in combine_pass(mixed)])
        for rule in rules(n):
            (got,), _ = column_pass(mixed, rule, rule=rule)
            torch.testing.assert_close(got[0], rule(values).float(), rtol=1e-6, atol=1e-6)


def combined_by(path: str, x: torch.Tensor, mixing: torch.Tensor, monkeypatch: pytest.MonkeyPatch) -> torch.Tensor:
    with monkeypatch.context() as patch:
        patch.setenv("BYZFLOW_KERNELS", path)
        kernels.library.cache_clear()
        answers = combine_pass(Mixed([Rows.of(list(x))], mixing))
    kernels.library.cache_clear()
    return torch.stack([answer[0] for answer in answers])


@needs_kernels
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
@pytest.mark.parametrize("d", [1, 7, 33, 200, 5000])
def test_combinations_on_both_paths(d: int, dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch) -> None:
    generator = torch.Generator().manual_seed(d)
    x = torch.randn(13, d, generator=generator).to(dtype)
    dense = torch.rand(11, 13, generator=generator, dtype=torch.float64)
    sparse = torch.diag(dense[0, :11]) @ torch.eye(11, 13, dtype=torch.float64)
    some = dense * (torch.rand(11, 13, generator=generator) < 0.5)
    for mixing in (dense, sparse, some, dense[:1], some[:1], sparse[:1], torch.zeros_like(dense)):
        fast = combined_by("c", x, mixing, monkeypatch)
        tolerance = {torch.bfloat16: 1e-2, torch.float32: 1e-6, torch.float64: 1e-12}[dtype]
        torch.testing.assert_close(fast, combined_by("torch", x, mixing, monkeypatch), rtol=tolerance, atol=tolerance)


@needs_kernels
@pytest.mark.parametrize("odd", [torch.nan, torch.inf, -torch.inf, 1e30])
def test_a_row_that_is_kept_touches_only_its_own_combinations(odd: float, monkeypatch: pytest.MonkeyPatch) -> None:
    x = torch.randn(6, 3000, generator=torch.Generator().manual_seed(2))
    x[4, 2999] = odd
    for mixing in (torch.ones(6, 6, dtype=torch.float64).tril(), torch.eye(6, dtype=torch.float64)):
        fast = combined_by("c", x, mixing, monkeypatch)
        clean = mixing[:, 4] == 0
        torch.testing.assert_close(fast[clean], (mixing @ x.double().nan_to_num())[clean].float())
        assert not clean.all()
        assert fast[~clean].isfinite().all() == (odd == 1e30)


@needs_kernels
@pytest.mark.parametrize("d", [1, 100, 4097])
def test_a_picked_row_is_that_row_bit_by_bit(d: int) -> None:
    x = torch.randn(5, d, generator=torch.Generator().manual_seed(3))
    x[2, 0] = 1e-42
    picked = combine_pass(Mixed([Rows.of(x)], torch.eye(5, dtype=torch.float64)[2:3]))[0][0]
    assert torch.equal(picked.view(torch.int32), x[2].view(torch.int32))


@needs_kernels
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("n", [3, 10, 33, 70])
@pytest.mark.parametrize("d", [1, 9, 1025, 40_000])
def test_equal_rows_are_equally_far_from_every_other(n: int, d: int, dtype: torch.dtype) -> None:
    x = torch.randn(n, d, generator=torch.Generator().manual_seed(n), dtype=dtype) * 1e-3 + 100
    x[n - 1] = x[0]
    x[1] = 1e30
    inner, _ = gram_pass(Rows.of(x), [])
    distances = Gram(inner, n).squared_distances
    assert distances[0, n - 1] == 0
    others = torch.arange(1, n - 1)
    assert torch.equal(distances[0, others], distances[n - 1, others])
    exact = (x[0].double() - x[2:].double()).square().sum(1)
    torch.testing.assert_close(distances[0, 2:], exact, rtol=1e-9, atol=1e-18 * d)


@pytest.mark.parametrize("scale", [1e-30, 1e-15, 1.0, 1e15, 1e30])
def test_the_reference_is_found_at_every_scale(scale: float) -> None:
    x = torch.randn(9, 5000, generator=torch.Generator().manual_seed(4)) * scale
    x[0] *= 1e6
    inner, bad = gram_pass(Rows.of(x), [])
    assert not bad.any()
    exact = (x[1].double() - x[2:].double()).square().sum(1)
    torch.testing.assert_close(Gram(inner, 9).squared_distances[1, 2:] / scale**2, exact / scale**2)


@pytest.mark.parametrize("odd", [torch.nan, torch.inf])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.float16])
def test_the_mean_finds_rows_that_are_not_finite(odd: float, dtype: torch.dtype) -> None:
    x = torch.randn(5, 3000, generator=torch.Generator().manual_seed(5)).to(dtype)
    x[3, 1234] = odd
    for weights in (None, [1.0, 1.0, 1.0, 0.0, 1.0], [1.0, 2.0, 3.0, 4.0, 5.0]):
        extras = {} if weights is None else {"sample_weights": torch.tensor(weights, dtype=torch.float64)}
        found = byzflow.parse("mean").explain(x, **extras)
        assert found.rejected == (3,)
        assert found.value.isfinite().all()
    with pytest.raises(NonFiniteRows, match="rows 3 hold"):
        byzflow.parse("mean")(x, nonfinite="raise")
