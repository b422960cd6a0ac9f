"""How each other library is called: its own classes, on the same n separate rows, with the parameters of the workload.

ByzFL and ByzPy get the list of tensors (their torch path; both stack it themselves), Flower's functions the same
memory as numpy arrays. `flower app` is what its Message API runs today, on replies that it decodes; `flower` are the
functions on arrays. Where a library defines a rule otherwise than byzflow does by default, `same` is the spec that
means the same: results are compared with that.
"""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from torch import Tensor

from benchmarks.flower_step import STRATEGIES
from benchmarks.workloads import Workload
from tests.operators import peers as installed

Rows = list[Tensor]
Run = Callable[[Any], Any]
LIBRARIES = ("byzfl", "byzpy", "flower", "flower app")


@dataclass(frozen=True)
class Peer:
    """One rule of another library."""

    build: Callable[[Workload], Run]
    """Makes the function that is measured, from the workload."""
    same: str = ""
    """The spec whose result it should give; '' for that of the workload."""
    inputs: Callable[[Rows], Any] = list
    """The rows as the function wants them; not measured."""
    random: bool = False
    """Its result is drawn, and cannot be compared."""


def install() -> str:
    """Puts ByzFL and ByzPy where tests look for them, without what they depend on; '' or what went wrong."""
    if not installed.missing():
        return ""
    pins = Path(installed.__file__).with_name("peers.txt")
    command = [sys.executable, "-m", "pip", "--disable-pip-version-check", "install", "--quiet", "--upgrade"]
    done = subprocess.run([*command, "--no-deps", "--target", str(installed.FOLDER), "-r", str(pins)], check=False)
    installed.missing.cache_clear()
    return installed.missing() if done.returncode == 0 else f"pip ended with code {done.returncode}"


def available() -> dict[str, str]:
    """Why a library is not there, for each that is not."""
    absent = installed.missing()
    reasons = dict.fromkeys(("byzfl", "byzpy"), absent) if absent else {}
    if find_spec("flwr") is None:
        reasons |= dict.fromkeys(("flower", "flower app"), "flwr is not installed")
    if find_spec("scipy") is None:
        reasons["byzfl"] = "scipy is not installed"
    return reasons


# ---- ByzFL


def byzfl(*stages: Callable[[Workload, Any], Any], same: str = "") -> Peer:
    """ByzFL's objects, each called with what the one before gave."""

    def build(workload: Workload) -> Run:
        library = installed.peer("byzfl.aggregators")
        objects = [stage(workload, library) for stage in stages]

        def run(rows: Any) -> Any:
            for each in objects:
                rows = each(rows)
            return rows

        return run

    return Peer(build, same)


def _clipping(workload: Workload, library: Any) -> Run:
    """A new object for each call: it keeps its centre, and would start from the last result."""
    return lambda rows: library.CenteredClipping(L=10, tau=float(dict(workload.settings).get("tau", workload.tau)))(
        rows
    )


_fl_arc = lambda w, a: a.ARC(f=w.f)  # noqa: E731
_fl_nnm = lambda w, a: a.NNM(f=w.f)  # noqa: E731
_fl_trimmed = lambda w, a: a.TrMean(f=w.f)  # noqa: E731
_fl_geometric = lambda w, a: a.GeometricMedian()  # noqa: E731
BYZFL = {
    "mean": byzfl(lambda w, a: a.Average()),
    "median": byzfl(lambda w, a: a.Median()),
    "trimmed_mean": byzfl(_fl_trimmed),
    "meamed": byzfl(lambda w, a: a.Meamed(f=w.f)),
    "krum": byzfl(lambda w, a: a.Krum(f=w.f), same="krum(neighbors=n-f-1, strict=false)"),
    "multi_krum": byzfl(lambda w, a: a.MultiKrum(f=w.f), same="multi_krum(neighbors=n-f-1, strict=false)"),
    "geometric_median": byzfl(_fl_geometric),
    "centered_clipping": byzfl(_clipping),
    "mda": byzfl(lambda w, a: a.MDA(f=w.f)),
    "smea": byzfl(lambda w, a: a.SMEA(f=w.f)),
    "caf": byzfl(lambda w, a: a.CAF(f=w.f)),
    "monna": byzfl(lambda w, a: a.MoNNA(f=w.f, idx=0)),
    "nnm": byzfl(_fl_nnm),
    "arc": byzfl(_fl_arc),
    "clipping": byzfl(lambda w, a: a.Clipping(c=w.setting("c"))),
    "nnm | trimmed_mean": byzfl(_fl_nnm, _fl_trimmed),
    "arc | nnm | trimmed_mean": byzfl(_fl_arc, _fl_nnm, _fl_trimmed),
    "arc | nnm | geometric_median": byzfl(_fl_arc, _fl_nnm, _fl_geometric),
}


# ---- ByzPy


def byzpy(*stages: tuple[str, str, Callable[[Workload], dict[str, Any]]], same: str = "", random: bool = False) -> Peer:
    """ByzPy's objects, each called directly (no pool) with what the one before gave: module, class, arguments."""

    def build(workload: Workload) -> Run:
        calls = [_byzpy_call(getattr(_byzpy(module), name)(**with_(workload))) for module, name, with_ in stages]

        def run(rows: Any) -> Any:
            for call in calls:
                rows = call(rows)
            return rows

        return run

    return Peer(build, same, random=random)


def _byzpy(module: str) -> Any:
    return installed.peer(f"byzpy.{module}")


def _byzpy_call(found: Any) -> Run:
    if hasattr(found, "aggregate"):
        return found.aggregate  # type: ignore[no-any-return]
    if hasattr(found, "pre_aggregate"):
        return found.pre_aggregate  # type: ignore[no-any-return]
    if found.uses_base_grad:
        return lambda rows: found.apply(base_grad=rows[0])
    return lambda rows: found.apply(honest_grads=rows)


def _f(w: Workload) -> dict[str, Any]:
    return {"f": w.f}


def _none(w: Workload) -> dict[str, Any]:
    return {}


def _q(w: Workload) -> dict[str, Any]:
    return {"f": w.f, "q": dict(w.settings).get("q", w.n - w.f)}


def _centre(w: Workload) -> dict[str, Any]:
    return {"c_tau": dict(w.settings).get("tau", w.tau), "M": 10, "init": "zero"}


def _order(w: Workload) -> dict[str, Any]:
    return {"bucket_size": w.setting("s"), "perm": range(w.n)}


_PY_TRIMMED = ("aggregators.coordinate_wise.trimmed_mean", "CoordinateWiseTrimmedMean", _f)
_PY_GEOMETRIC = ("aggregators.geometric_wise.geometric_median", "GeometricMedian", _none)
_PY_NNM = ("pre_aggregators.nnm", "NearestNeighborMixing", _f)
_PY_ARC = ("pre_aggregators.arc", "ARC", _f)
_PY_KRUM = "multi_krum(neighbors=n-f-1, strict=false, m={q})"
_PY_MULTI_KRUM = byzpy(("aggregators.geometric_wise.krum", "MultiKrum", _q), same=_PY_KRUM)
BYZPY = {
    "median": byzpy(("aggregators.coordinate_wise.median", "CoordinateWiseMedian", _none)),
    "trimmed_mean": byzpy(_PY_TRIMMED),
    "meamed": byzpy(("aggregators.coordinate_wise.mean_of_medians", "MeanOfMedians", _f)),
    "krum": byzpy(("aggregators.geometric_wise.krum", "Krum", _f), same="krum(neighbors=n-f-1, strict=false)"),
    "multi_krum": _PY_MULTI_KRUM,
    "parameter server: multi_krum": _PY_MULTI_KRUM,
    "geometric_median": byzpy(_PY_GEOMETRIC),
    "mda": byzpy(("aggregators.geometric_wise.minimum_diameter_average", "MinimumDiameterAveraging", _f)),
    "smea": byzpy(("aggregators.geometric_wise.smea", "SMEA", _f)),
    "monna": byzpy(("aggregators.geometric_wise.monna", "MoNNA", _f)),
    "caf": byzpy(("aggregators.norm_wise.caf", "CAF", _f)),
    "centered_clipping": byzpy(("aggregators.norm_wise.center_clipping", "CenteredClipping", _centre)),
    "cge": byzpy(("aggregators.norm_wise.comparative_gradient_elimination", "ComparativeGradientElimination", _f)),
    "nnm": byzpy(_PY_NNM),
    "arc": byzpy(_PY_ARC),
    "bucketing": byzpy(("pre_aggregators.bucketing", "Bucketing", _order)),
    "clipping": byzpy(("pre_aggregators.clipping", "Clipping", lambda w: {"threshold": w.setting("c")})),
    "nnm | trimmed_mean": byzpy(_PY_NNM, _PY_TRIMMED),
    "arc | nnm | trimmed_mean": byzpy(_PY_ARC, _PY_NNM, _PY_TRIMMED),
    "arc | nnm | geometric_median": byzpy(_PY_ARC, _PY_NNM, _PY_GEOMETRIC),
    "ipm": byzpy(("attacks.empire", "EmpireAttack", _none)),
    "alie": byzpy(("attacks.little", "LittleAttack", _f)),
    "gaussian": byzpy(("attacks.gaussian", "GaussianAttack", _none), random=True),
    "sign_flip": byzpy(("attacks.sign_flip", "SignFlipAttack", _none)),
    "mimic": byzpy(("attacks.mimic", "MimicAttack", _none)),
    "inf": byzpy(("attacks.inf", "InfAttack", _none)),
}


# ---- Flower


def _results(rows: Sequence[Tensor]) -> list[tuple[list[Any], int]]:
    """(arrays, number of examples) of each client."""
    return [([row.numpy()], 1) for row in rows]


def _replies(rows: Sequence[Tensor]) -> list[Any]:
    """The content of each client's reply."""
    from flwr.app import Array, ArrayRecord, MetricRecord, RecordDict

    return [
        RecordDict({"arrays": ArrayRecord({"w": Array(row.numpy())}), "metrics": MetricRecord({"num-examples": 1})})
        for row in rows
    ]


def flower(call: Callable[[Workload, Any, Any], Any], same: str = "") -> Peer:
    """A function of flwr.server.strategy.aggregate; it may change the list that it gets, not the arrays."""

    def build(workload: Workload) -> Run:
        from flwr.server.strategy import aggregate

        return lambda results: call(workload, aggregate, list(results))[0]

    return Peer(build, same, _results)


def flower_app(keep: Callable[[Workload], int], same: str) -> Peer:
    """What flwr.serverapp.strategy's MultiKrum does with the replies: select, then average."""

    def build(workload: Workload) -> Run:
        from flwr.serverapp.strategy.multikrum import select_multikrum
        from flwr.serverapp.strategy.strategy_utils import aggregate_arrayrecords

        def run(replies: list[Any]) -> Any:
            chosen = select_multikrum(replies, workload.f, keep(workload))
            return aggregate_arrayrecords(chosen, "num-examples")["w"].numpy()

        return run

    return Peer(build, same, _replies)


def _bulyan_app() -> Peer:
    def build(workload: Workload) -> Run:
        import numpy as np
        from flwr.serverapp.strategy.bulyan import aggregate_n_closest_weights
        from flwr.serverapp.strategy.multikrum import select_multikrum

        theta = workload.n - 2 * workload.f

        def run(replies: list[Any]) -> Any:
            chosen = select_multikrum(replies, workload.f, theta)
            arrays = [each["arrays"].to_numpy_ndarrays() for each in chosen]
            medians = [np.median(each, axis=0) for each in zip(*arrays, strict=True)]
            return aggregate_n_closest_weights(medians, arrays, theta - 2 * workload.f)[0]

        return run

    return Peer(build, "bulyan(selection=oneshot)", _replies)


def _kept(w: Workload) -> int:
    return w.n - w.f - 2


FLOWER = {
    "mean": flower(lambda w, a, results: a.aggregate(results)),
    "median": flower(lambda w, a, results: a.aggregate_median(results)),
    "trimmed_mean": flower(lambda w, a, results: a.aggregate_trimmed_avg(results, (w.f + 0.01) / w.n)),
    "krum": flower(lambda w, a, results: a.aggregate_krum(results, w.f, 0), "krum(strict=false)"),
    "multi_krum": flower(lambda w, a, results: a.aggregate_krum(results, w.f, _kept(w)), "multi_krum(strict=false)"),
    "bulyan": flower(lambda w, a, results: a.aggregate_bulyan(results, w.f, a.aggregate_krum, to_keep=0)),
}
FLOWER_APP = {
    "krum": flower_app(lambda w: 1, "krum(strict=false)"),
    "multi_krum": flower_app(_kept, "multi_krum(strict=false)"),
    "bulyan": _bulyan_app(),
}

PEERS = {"byzfl": BYZFL, "byzpy": BYZPY, "flower": FLOWER, "flower app": FLOWER_APP}


def peers_of(workload: Workload) -> list[str]:
    """The libraries that have this rule and are called in this group."""
    if workload.group == "flower":
        return ["flower"] if workload.name in STRATEGIES else []
    if workload.group == "byzpy":
        return ["byzpy"] if workload.name in BYZPY else []
    return [library for library in LIBRARIES if workload.name in PEERS[library]]
