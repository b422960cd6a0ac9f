"""ByzPy's names. Its programs run with `from byzflow_compat.byzpy import ...` in the place of their own imports.

Constructors take the original's arguments. Sizes of chunks are accepted and change nothing: the engine finds its own.
Rules keep the definitions of the literature where the original departs from them; see the page "From ByzPy".
"""

from __future__ import annotations

import random
from collections.abc import Callable, Iterable, Mapping, Sequence
from statistics import NormalDist
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from byzflow.actors import ActorPool, ActorRef, Backend, SubTask, resolve, spawn
from byzflow.actors import ActorPoolConfig as PoolConfig
from byzflow.custom import Aggregator, Attack, PreAggregator, Stage
from byzflow.errors import SpecError
from byzflow.federation import parameter_server, peer_to_peer
from byzflow.federation.applications import ByzantineNodeApplication, HonestNodeApplication, NodeApplication
from byzflow.federation.contexts import InProcessContext, NodeContext, ProcessContext
from byzflow.federation.decentralized import DecentralizedNode
from byzflow.federation.decentralized_cluster import DecentralizedCluster
from byzflow.federation.distributed import DistributedByzantineNode, DistributedHonestNode, gradient_of
from byzflow.federation.nodes import ByzantineNode, HonestNode, Node
from byzflow.federation.progress import train_with_progress
from byzflow.federation.router import MessageRouter
from byzflow.gossip import topology
from byzflow.graph import (
    CallableOp,
    ComputationGraph,
    GraphInput,
    GraphNode,
    MessageAwareNodeScheduler,
    MessageSource,
    MessageTriggerOp,
    NodeScheduler,
    OpContext,
    Operator,
    OperatorExecutor,
    RemoteCallableOp,
    graph_input,
    make_single_operator_graph,
    run_operator,
)
from byzflow.operators import Operator as Robust
from byzflow.spec import parse
from byzflow_compat.nodes import ByzantineNodeActor, HonestNodeActor, P2PByzantineMixin, P2PHonestMixin

SEEDS = 2**31

# ---------------------------------------------------------------- aggregators


def CoordinateWiseMedian(*, chunk_size: int = 0) -> Robust:
    """The median of each coordinate."""
    return parse("median")


def CoordinateWiseTrimmedMean(f: int, *, chunk_size: int = 0) -> Robust:
    """The mean of each coordinate without its f smallest and f largest values."""
    return parse("trimmed_mean", f=f)


def MeanOfMedians(f: int, *, chunk_size: int = 0) -> Robust:
    """The mean of the n - f values of each coordinate that are nearest to its median (MeaMed)."""
    return parse("meamed", f=f)


def Krum(f: int, *, chunk_size: int = 0) -> Robust:
    """The row that is nearest to its neighbours, by the original's count of them."""
    return parse("krum", f=f, preset="byzpy")


def MultiKrum(f: int, q: int, *, chunk_size: int = 0) -> Robust:
    """The mean of the q best rows by Krum's score."""
    return parse(f"multi_krum(m={q})", f=f, preset="byzpy")


def GeometricMedian(
    *, tol: float = 1e-6, max_iter: int = 256, eps: float = 1e-12, init: str = "median", chunk_size: int = 0
) -> Robust:
    """The point with the least sum of distances, in `max_iter` steps at most.

    The other arguments are of the original's own iteration, and change nothing.
    """
    return parse(f"geometric_median(steps={max_iter})")


def MinimumDiameterAveraging(f: int, *, chunk_size: int = 0) -> Robust:
    """The mean of the n - f rows with the least diameter."""
    return parse("mda", f=f)


def MoNNA(f: int, *, reference_index: int = 0, chunk_size: int = 0) -> Robust:
    """The mean of the n - f rows nearest to a trusted one."""
    return parse(f"monna(reference_index={reference_index})", f=f)


def SMEA(f: int, *, chunk_size: int = 0) -> Robust:
    """The mean of the n - f rows whose covariance has the least spectral norm."""
    return parse("smea", f=f)


class _Clipped(Aggregator):
    """Centred clipping whose first centre is found from the rows."""

    name: ClassVar[str] = "centered_clipping"

    def __init__(self, first: str, rule: str) -> None:
        self.first, self.rule = parse(first), parse(rule)

    def aggregate(self, rows: Any) -> Any:
        """Around the first centre."""
        return self.rule(rows, center=self.first(rows))


def CenteredClipping(
    *, c_tau: float, M: int = 10, eps: float = 1e-12, init: str = "mean", chunk_size: int = 0
) -> Robust:
    """M steps of a centre to the mean of the clipped differences from it; `init` is "mean", "median" or "zero".

    "zero" goes on from the last result where rounds follow each other, as the paper has it.
    """
    rule = f"centered_clipping(tau={c_tau}, iterations={M})"
    if init not in ("mean", "median", "zero"):
        raise SpecError(f"init is 'mean', 'median' or 'zero', got {init!r}")
    return parse(rule) if init == "zero" else _Clipped(init, rule)


def ComparativeGradientElimination(f: int, *, chunk_size: int = 0) -> Robust:
    """The mean of the n - f rows with the smallest norms."""
    return parse("cge", f=f)


def CAF(f: int, *, chunk_size: int = 0, power_iters: int = 3) -> Robust:
    """Covariance-bound agnostic filter; its leading direction is found exactly, whatever `power_iters`."""
    return parse("caf", f=f)


# ---------------------------------------------------------------- pre-aggregators


class _Permuted(PreAggregator):
    """Bucketing in an order that is given."""

    name: ClassVar[str] = "bucketing"

    def __init__(self, size: int, order: Sequence[int]) -> None:
        self.rule, self.order = parse(f"bucketing(s={size})"), tuple(order)

    def pre_aggregate(self, rows: Any) -> Any:
        """The buckets' means."""
        return list(self.rule(rows, permutation=torch.tensor(self.order)))


def Bucketing(
    bucket_size: int,
    *,
    feature_chunk_size: int = 0,
    perm: Iterable[int] | None = None,
    rng: random.Random | None = None,
) -> Robust:
    """The means of buckets, filled in the order `perm`, or at random, seeded by `rng`."""
    if perm is not None:
        return _Permuted(bucket_size, list(perm))
    return parse(f"bucketing(s={bucket_size}, seed={(rng or random).randrange(SEEDS)})")


def Clipping(threshold: float = 2.0, *, chunk_size: int = 0) -> Robust:
    """Rows no longer than the threshold."""
    return parse(f"clipping(c={threshold})")


def ARC(f: int = 0, *, chunk_size: int = 0) -> Robust:
    """Adaptive robust clipping: the longest rows are clipped to the length of a shorter one."""
    return parse("arc", f=f)


def NearestNeighborMixing(f: int, *, feature_chunk_size: int = 0) -> Robust:
    """Each row becomes the mean of its n - f nearest ones."""
    return parse("nnm", f=f)


# ---------------------------------------------------------------- attacks


def EmpireAttack(scale: float = -1.0, *, chunk_size: int = 0) -> Robust:
    """The honest mean times `scale`."""
    return parse(f"ipm(f=1, tau={-scale})")


def SignFlipAttack(scale: float = -1.0, *, chunk_size: int = 0) -> Robust:
    """The attacker's own gradient times `scale`."""
    return parse(
        f"sign_flip(f=1, scale={-scale}, knowledge=own)" if scale < 0 else f"ipm(f=1, tau={-scale}, knowledge=own)"
    )


def LittleAttack(f: int, N: int | None = None, *, chunk_size: int = 0) -> Robust:
    """A little is enough (ALIE), its z from the f attackers of N nodes, or of all that are seen."""
    f = max(1, f)
    if N is None:
        return parse("alie", f=f, preset="byzpy")
    share = (N - max(1, N // 2 + 1 - f)) / N
    return parse(f"alie(z={NormalDist().inv_cdf(min(max(share, 1e-12), 1 - 1e-12))})", f=f, preset="byzpy")


class GaussianAttack(Attack):
    """Noise, new at each call."""

    name: ClassVar[str] = "gaussian"
    uses_honest_grads = True

    def __init__(self, mu: float = 0.0, sigma: float = 1.0, *, seed: int | None = None, chunk_size: int = 0) -> None:
        seed = random.randrange(SEEDS) if seed is None else seed
        self.rule, self.calls = parse(f"gaussian(f=1, mean={mu}, sigma={sigma}, seed={seed})"), [0]

    def apply(self, *, honest_grads: Any = None, **others: Any) -> Any:
        """One row of noise, like the honest ones."""
        self.calls[0] += 1
        return self.rule(honest_grads, round=self.calls[0] - 1)[0]


def InfAttack(*, chunk_size: int = 0) -> Robust:
    """Infinity in every coordinate."""
    return parse("inf(f=1)")


def MimicAttack(epsilon: int = 0, *, chunk_size: int = 0) -> Robust:
    """The honest row of this index."""
    return parse(f"mimic(f=1, index={epsilon})")


class LabelFlipAttack(Attack):
    """The gradient on wrong labels: num_classes - 1 - y, or by a mapping; the model stays as it is."""

    name: ClassVar[str] = "label_flip"
    uses_model_batch = True

    def __init__(
        self,
        *,
        num_classes: int | None = None,
        mapping: Mapping[int, int] | None = None,
        loss_fn: Callable[[Tensor, Tensor], Tensor] | None = None,
        scale: float = 1.0,
    ) -> None:
        if mapping is None and num_classes is None:
            raise SpecError("label flipping needs num_classes or a mapping")
        self.num_classes, self.mapping, self.scale = num_classes, dict(mapping or {}), scale
        self.loss_fn = loss_fn or nn.functional.cross_entropy

    def apply(self, *, model: Any = None, x: Any = None, y: Any = None, **others: Any) -> Any:
        """(d,): `scale` times the gradient of the loss on the flipped labels."""
        if model is None or x is None or y is None:
            raise SpecError("label flipping needs model, x and y")
        if self.mapping:
            wrong = y.clone()
            for old, new in self.mapping.items():
                wrong[y == old] = new
        else:
            wrong = (self.num_classes or 0) - 1 - y
        return self.scale * gradient_of(model, self.loss_fn, x, wrong)


# ---------------------------------------------------------------- workers


def ActorPoolConfig(
    backend: Any, count: int = 1, capabilities: Sequence[str] | None = None, name: str | None = None
) -> PoolConfig:
    """Workers of a pool; "gpu" is the first GPU."""
    return PoolConfig("cuda:0" if backend == "gpu" else backend, count, capabilities, name)


def resolve_backend(spec: str | Backend) -> Backend:
    """A worker that is not started: "thread", "process", "gpu", "tcp://host:port", "ucx://host:port"."""
    return resolve("cuda:0" if spec == "gpu" else spec)


set_actor = resolve_backend


def ThreadActorBackend() -> Backend:
    """A worker on threads."""
    return resolve("thread:")


def ProcessActorBackend() -> Backend:
    """A worker in a process."""
    return resolve("process:")


def GPUActorBackend() -> Backend:
    """A worker with the first GPU."""
    return resolve("cuda:0")


def RemoteActorBackend(host: str, port: int, **options: Any) -> Backend:
    """A worker on another machine, behind `byzflow actor-server`."""
    return resolve(f"tcp://{host}:{port}", **options)


# ---------------------------------------------------------------- training


class ParameterServer(parameter_server.ParameterServer):
    """The same, with the original's arguments: `scheduler_metadata` is accepted, and nobody reads it."""

    def __init__(
        self,
        honest_nodes: Any,
        byzantine_nodes: Any = (),
        aggregator: Stage = "mean",
        pre_aggregator: Any = None,
        update_byzantines: bool = False,
        *,
        scheduler_metadata: Mapping[str, Any] | None = None,
        **settings: Any,
    ) -> None:
        super().__init__(honest_nodes, byzantine_nodes, aggregator, pre_aggregator, update_byzantines, **settings)


class PeerToPeer(peer_to_peer.PeerToPeer):
    """The same, with the original's arguments, its step size, and the median where no rule is named."""

    def __init__(
        self,
        honest_nodes: Any,
        byzantine_nodes: Any,
        topology: Any,
        *,
        aggregator: Stage = "median",
        lr: float = 0.05,
        channel_name: str = "p2p",
        **settings: Any,
    ) -> None:
        super().__init__(honest_nodes, byzantine_nodes or (), topology, aggregator, lr=lr, **settings)


class Topology:
    """Graphs of nodes 0 to n - 1: `Topology(n, edges)` with directed edges, `ring` and `complete`."""

    def __new__(cls, n_nodes: int, edges: Iterable[tuple[int, int]]) -> topology.Topology:  # type: ignore[misc]
        """A graph of byzflow's."""
        return topology.Topology(tuple(range(n_nodes)), tuple(dict.fromkeys(edges)), directed=True)

    @staticmethod
    def ring(n: int, k: int = 1) -> topology.Topology:
        """Each node joined to the k before and the k behind it."""
        pairs = {(min(a, b), max(a, b)) for a in range(n) for d in range(1, k + 1) if (b := (a + d) % n) != a}
        return topology.Topology(tuple(range(n)), tuple(sorted(pairs)))

    @staticmethod
    def complete(n: int) -> topology.Topology:
        """All joined to all."""
        return topology.Topology(tuple(range(n)), tuple((a, b) for a in range(n) for b in range(a + 1, n)))


__all__ = [
    "ARC",
    "CAF",
    "SMEA",
    "ActorPool",
    "ActorPoolConfig",
    "ActorRef",
    "Aggregator",
    "Attack",
    "Bucketing",
    "ByzantineNode",
    "ByzantineNodeActor",
    "ByzantineNodeApplication",
    "CallableOp",
    "CenteredClipping",
    "Clipping",
    "ComparativeGradientElimination",
    "ComputationGraph",
    "CoordinateWiseMedian",
    "CoordinateWiseTrimmedMean",
    "DecentralizedCluster",
    "DecentralizedNode",
    "DistributedByzantineNode",
    "DistributedHonestNode",
    "EmpireAttack",
    "GPUActorBackend",
    "GaussianAttack",
    "GeometricMedian",
    "GraphInput",
    "GraphNode",
    "HonestNode",
    "HonestNodeActor",
    "HonestNodeApplication",
    "InProcessContext",
    "InfAttack",
    "Krum",
    "LabelFlipAttack",
    "LittleAttack",
    "MeanOfMedians",
    "MessageAwareNodeScheduler",
    "MessageRouter",
    "MessageSource",
    "MessageTriggerOp",
    "MimicAttack",
    "MinimumDiameterAveraging",
    "MoNNA",
    "MultiKrum",
    "NearestNeighborMixing",
    "Node",
    "NodeApplication",
    "NodeContext",
    "NodeScheduler",
    "OpContext",
    "Operator",
    "OperatorExecutor",
    "P2PByzantineMixin",
    "P2PHonestMixin",
    "ParameterServer",
    "PeerToPeer",
    "PreAggregator",
    "ProcessActorBackend",
    "ProcessContext",
    "RemoteActorBackend",
    "RemoteCallableOp",
    "SignFlipAttack",
    "SubTask",
    "ThreadActorBackend",
    "Topology",
    "graph_input",
    "make_single_operator_graph",
    "resolve_backend",
    "run_operator",
    "set_actor",
    "spawn",
    "train_with_progress",
]
