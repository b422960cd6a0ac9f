"""What all processes of one run make of its file alike: data, model, rule, graph and terms."""

from __future__ import annotations

import math
import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from torch import Tensor, nn

from byzflow.actors.address import is_here
from byzflow.errors import DataError, FederationError, SpecError
from byzflow.federation import datasets
from byzflow.federation.learner_node import LearnerNode
from byzflow.federation.models import make_model
from byzflow.federation.nodes import AttackNode
from byzflow.federation.nodes_file import Member, NodesFile
from byzflow.federation.partitions import partition
from byzflow.federation.randomness import seed_of
from byzflow.federation.typed_file import at
from byzflow.federation.vector import ModelVector
from byzflow.gossip.contract import Contract, Term
from byzflow.gossip.effects import NodeId
from byzflow.gossip.topology import Topology, topology
from byzflow.gossip.varying import Varying
from byzflow.operators import Operator
from byzflow.spec import parse_attack, parse_rule

SERVER = "server"
SECRETS = ("BYZFLOW_SECRET", "BYZPY_HMAC_SECRET")
Say = Callable[[str], None]


@dataclass(frozen=True, eq=False)
class Setup:
    """One run, as its file and the flags of one process say it. `group` says whether it has a server."""

    file: NodesFile
    group: Literal["workers", "nodes"]
    split: datasets.Split
    rule: Operator
    f: int
    quorum: int | None
    graph: Topology | Varying
    contract: Contract
    keys: Path | None = None
    plain: bool = False

    @property
    def members(self) -> tuple[Member, ...]:
        """Workers or nodes."""
        return self.file.workers if self.group == "workers" else self.file.nodes

    @property
    def names(self) -> Mapping[str, NodeId]:
        """Under which name in the folders of keys which node is trusted."""
        return {**{_name(each, self.group): each.id for each in self.members}, **self._server_name}

    @property
    def _server_name(self) -> Mapping[str, NodeId]:
        return {self.file.server.name: SERVER} if self.group == "workers" and self.file.server is not None else {}

    def keys_of(self, own: str | None) -> Path | None:
        """The folder of keys of a node: the flag's, or else the file's. FederationError for a secret without keys."""
        folder = self.keys or (None if own is None else Path(own))
        if folder is None and (found := [name for name in SECRETS if os.environ.get(name)]):
            raise FederationError(
                f"{found[0]} is set, but one secret for all lets each worker pose as any other: "
                "make a key for each node (byzflow keys new), pass --keys DIR, and unset it"
            )
        return folder

    def bound(self, host: str, bind_host: str, keys: Path | None, say: Say) -> str:
        """The address to listen at: without keys nobody beyond this host is let in."""
        if keys is None and not self.plain and is_here(host):
            if not is_here(bind_host):
                say(f"no keys: listening at {host} alone, not at {bind_host}")
            return host
        return bind_host

    def module(self) -> nn.Module:
        """A fresh model; all that are made of one file begin equal."""
        return _module(self.file, self.split)

    def node(self, member: Member, kind: str) -> LearnerNode | Liar:
        """The honest or Byzantine node of this member, with its shard of the data."""
        training = self.file.training
        shards = max(1, sum(each.type == "honest" for each in self.members))
        shard = (member.id if member.data_shard is None else member.data_shard) % shards
        with at("training.partition"):
            part = partition(training.partition, self.split.train_y, shards, seed=training.seed)[shard]
        learner = LearnerNode(
            self.module(),
            (self.split.train_x[part], self.split.train_y[part]),
            test=self.split,
            batch_size=training.batch_size,
            lr=training.learning_rate,
            momentum=training.momentum,
            seed=seed_of(training.seed, "node", member.id),
        )
        if kind == "honest":
            return learner
        step = "honest_gradient_for_next_batch" if self.group == "workers" else "half_step"
        return Liar(member.attack or f"ipm(tau={-member.attack_scale})", learner, step)


class Liar(AttackNode):
    """An attacker that knows its own data and what all are told, and can show that it follows."""

    learner: LearnerNode

    def rejoin(self, round: int, model: Tensor, velocity: Tensor | None) -> None:
        """See `LearnerNode`."""
        self.learner.rejoin(round, model, velocity)

    def digest(self) -> str:
        """Of its learner's model."""
        return self.learner.digest()

    def evaluate(self) -> dict[str, float]:
        """Its learner's accuracy and loss."""
        return self.learner.evaluate()


def setup(
    file: NodesFile,
    group: Literal["workers", "nodes"],
    data_root: Path,
    keys: Path | None = None,
    plain: bool = False,
    say: Say = lambda line: None,
) -> Setup:
    """Read what the file names and check that it fits together. Raises SpecError and its like for what does not."""
    members = getattr(file, group)
    if not members or (group == "workers" and file.server is None):
        raise SpecError("the file needs server: and workers:" if group == "workers" else "the file needs nodes:")
    training = file.training
    name = training.dataset or _default_dataset(data_root, say)
    with at("training.dataset"):
        split = datasets.load(name, data_root)
    for each in members:
        if each.attack is None:
            continue
        with at(f"{group}[].attack of id {each.id}"):
            parse_attack(each.attack)
    ids = tuple(each.id for each in members)
    graph: Topology | Varying
    if group == "workers":
        graph = Topology((SERVER, *ids), tuple((SERVER, id) for id in ids))
    else:
        with at("topology"):
            graph = topology(file.topology, ids, training.seed)
        if isinstance(graph, Topology) and set(graph.nodes) != set(ids):
            graph = graph.renamed(ids)
    heard = len(ids) if group == "workers" else 1 + min(len(graph_at(graph).in_neighbours(id)) for id in ids)
    with at("aggregation"):
        rule, f = _rule(file, heard, say)
    with at("training.model"):
        model = ModelVector(_module(file, split))
    terms: dict[str, Term] = {
        "training.batch_size": training.batch_size,
        "training.learning_rate": training.learning_rate,
        "training.momentum": training.momentum,
        "training.seed": training.seed,
        "training.dataset": f"{name} of {len(split.train_y)} samples",
        "training.partition": training.partition,
        f"{group}[].id": ", ".join(map(str, ids)),
        "topology": "star" if group == "workers" else file.topology,
    }
    contract = Contract(file.run, model.schema.hash(), len(model), model.get().dtype, terms)
    return Setup(file, group, split, rule, f, training.quorum, graph, contract, keys, plain)


def graph_at(graph: Topology | Varying) -> Topology:
    """The graph of round 0."""
    return graph.at(0) if isinstance(graph, Varying) else graph


def hints(url: str) -> str:
    """What to look at when nobody answers."""
    return f"is the other side started? does a firewall close the port? is {url} the right address in the file?"


def _name(member: Member, group: str) -> str:
    return member.name or f"{'worker' if group == 'workers' else 'node'}-{member.id}"


def _default_dataset(root: Path, say: Say) -> str:
    try:
        datasets.load("mnist", root)
    except DataError:
        say(f"training.dataset is not given and there is no MNIST below {root}: synthetic data")
        return "synthetic"
    return "mnist"


def _module(file: NodesFile, split: datasets.Split) -> nn.Module:
    name = file.training.model or ("cnn" if len(split.shape) == 3 else "mlp")
    return make_model(name, split.shape, split.classes, file.training.seed)


def _rule(file: NodesFile, n: int, say: Say) -> tuple[Operator, int]:
    """The rule for n vectors, and how many Byzantine ones it is to bear."""
    aggregation = file.aggregation
    f = next((each for each in (aggregation.f, aggregation.krum_f) if each is not None), 1 if n > 2 else 0)
    krum = aggregation.method.replace("-", "_") in ("krum", "multi_krum", "mkrum")
    if not krum and (aggregation.krum_f, aggregation.krum_q) != (None, None):
        say(f"aggregation.krum_f and krum_q are for krum and multi_krum; {aggregation.method} takes aggregation.f")
    spec = aggregation.method
    if krum and aggregation.krum_q not in (None, n - f):
        spec += f"(m={aggregation.krum_q})"
    rule = parse_rule(spec, f, preset="byzpy" if krum else None)
    rule.check(n)
    if krum and n < 2 * f + 3:
        say(f"warning: {n} vectors are fewer than 2f + 3 = {2 * f + 3}: what is proven of Krum does not hold here")
    return rule, f


def finite(metrics: Mapping[str, Any]) -> dict[str, float]:
    """The numbers that JSON can hold."""
    return {name: float(value) for name, value in metrics.items() if math.isfinite(value)}
