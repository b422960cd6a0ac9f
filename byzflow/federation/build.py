"""From a configuration to a federation of learners that have part of the data each, and of liars."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from importlib import import_module
from statistics import median
from typing import Any

import torch
from torch import nn

from byzflow.errors import SpecError, did_you_mean, one_line
from byzflow.federation import datasets
from byzflow.federation.config import ClustersSection, Config
from byzflow.federation.federation import Federation
from byzflow.federation.learner_node import LearnerNode
from byzflow.federation.ledgers import check_recordable
from byzflow.federation.lives import STEPS
from byzflow.federation.models import make_model
from byzflow.federation.nodes import AttackNode
from byzflow.federation.partitions import hold_out, partition
from byzflow.federation.randomness import random_numbers
from byzflow.federation.report import Sink
from byzflow.federation.settings import ROLES
from byzflow.federation.supervision import Supervision
from byzflow.federation.typed_file import at
from byzflow.federation.virtual_node import INLINE, VirtualNode
from byzflow.gossip.cluster import Clusters
from byzflow.gossip.defence import Defence
from byzflow.gossip.effects import NodeId
from byzflow.gossip.topology import Topology, topology
from byzflow.gossip.varying import Varying
from byzflow.operators import Operator

DATA = ("test_share", "train", "test", "features", "classes", "spread")
SAME = ("lr", "momentum", "weight_decay", "batch_size", "prox_mu", "server_lr", "server_momentum")
PARTITION = ("alpha", "share", "per_node")


def build(config: Config, graph: str, sinks: Sequence[Sink] = ()) -> Federation:
    """The federation of a configuration over this graph: "star", "cluster" or one of `byzflow.gossip.topology`.

    Raises SpecError with the key for all that cannot work together, before anything runs.
    """
    liars = byzantine(config)
    roles = _roles(config)
    trainers = [node for node in range(config.nodes.count) if "train" in roles[node].split("-")]
    if not set(trainers) - set(liars):
        raise SpecError("nodes.roles: no honest node trains: give one of them the role train")
    star = graph == "star"
    exchange = _exchange(config, star)
    heard = fewest_heard(config, graph, trainers)
    f = faults(config)
    with at("defence.rule"):
        defence = Defence(config.defence.rule, f).operator
    with at("defence"):
        defence.check(heard)
    for key, most in (("quorum", heard if star else heard - 1), ("min_nodes", len(trainers))):
        if (value := getattr(config.federation, key)) is not None and value > most:
            raise SpecError(f"federation.{key}: must be at most {most}, the nodes that one can hear, got {value}")
    _check_kept(config, defence)
    nodes, sizes = _nodes(config, liars, roles, STEPS[exchange if star else "models"][0])
    backend = None if config.nodes.backend == INLINE else config.nodes.backend
    return Federation(
        nodes,
        clusters(config, graph) or graph,
        defence,
        f,
        roles=roles,
        fraction=config.federation.fraction,
        quorum=config.federation.quorum,
        deadline=config.federation.deadline,
        patience=config.federation.patience,
        min_nodes=config.federation.min_nodes,
        seed=config.federation.seed,
        exchange="updates" if exchange == "updates" else "gradients",
        evaluate_every=config.metrics.every,
        sinks=sinks,
        byzantine=liars,
        knowledge=config.attack.knowledge,
        weights=_weights(config, defence, sizes),
        backend=backend,
        workers=config.nodes.workers,
        supervision=Supervision(max_restarts=config.nodes.max_restarts),
        checkpoint=config.federation.checkpoint,
        checkpoint_every=config.federation.checkpoint_every,
        resume=config.federation.resume,
        ledger=config.federation.ledger,
    )


def byzantine(config: Config) -> tuple[int, ...]:
    """Who lies. Raises SpecError for ids that are not there."""
    given, count = config.nodes.byzantine, config.nodes.count
    liars = tuple(range(count - given, count)) if isinstance(given, int) else tuple(sorted(set(given)))
    if len(liars) >= count or any(not 0 <= node < count for node in liars):
        raise SpecError(f"nodes.byzantine: must be fewer than the {count} nodes, or ids 0 to {count - 1}, got {given}")
    return liars


def faults(config: Config) -> int:
    """The f of the defence: as many as lie, unless it is said."""
    return len(byzantine(config)) if config.defence.f is None else config.defence.f


def clusters(config: Config, graph: str) -> Clusters | None:
    """The clusters of the graph "cluster"; None of others, for which settings of clusters are an error."""
    given = config.clusters
    if graph != "cluster":
        if given != ClustersSection():
            raise SpecError(f"clusters: mean nothing over {graph}: set federation.topology to cluster")
        return None
    with at("clusters.between"):
        Defence(given.between)
    return Clusters(count=given.count, period=given.period, every=given.every, between=given.between)


def fewest_heard(config: Config, graph: str, trainers: Sequence[int]) -> int:
    """How many vectors the node that hears least aggregates, its own included."""
    count = config.nodes.count
    if graph == "star":
        return max(1, round(config.federation.fraction * len(trainers)))
    speak = set(trainers)
    if (groups := clusters(config, graph)) is not None:
        with at("clusters"):
            return min(len(speak & set(group)) for group in groups.initial(range(count)))
    with at("federation.topology"):
        made: Topology | Varying = topology(graph, count, config.federation.seed)
        shown = made.at(0) if isinstance(made, Varying) else made
    return min(1 + sum(other in speak for other in shown.in_neighbours(node)) for node in range(count))


def _check_kept(config: Config, rule: Operator) -> None:
    """That there is a checkpoint where one is spoken of, and that the rule's rounds can be written down."""
    given = config.federation
    for key, used in (("resume", given.resume), ("checkpoint_every", given.checkpoint_every != 1)):
        if used and given.checkpoint is None:
            raise SpecError(f"federation.{key}: means nothing without a folder: set federation.checkpoint")
    if given.ledger is not None:
        with at("federation.ledger"):
            check_recordable(rule)


def _roles(config: Config) -> dict[NodeId, str]:
    given, count = config.nodes.roles, config.nodes.count
    if isinstance(given, Mapping) and (strangers := [node for node in given if not 0 <= node < count]):
        raise SpecError(f"nodes.roles: no node {strangers[0]}: ids are 0 to {count - 1}")
    roles: dict[NodeId, str] = {
        node: given if isinstance(given, str) else given.get(node, "train-eval") for node in range(count)
    }
    for role in roles.values():
        for word in role.split("-"):
            if word not in ROLES:
                raise SpecError(f"nodes.roles: no role {word!r} in {role!r}; {did_you_mean(word, ROLES)}")
    return roles


def _exchange(config: Config, star: bool) -> str:
    given, training = config.federation.exchange, config.training
    local = {
        "training.local_steps": training.local_steps > 1,
        "training.local_epochs": training.local_epochs is not None,
        "training.prox_mu": training.prox_mu > 0,
        "training.weight_decay": training.weight_decay > 0,
        "training.server_lr": training.server_lr != 1,
        "training.server_momentum": training.server_momentum > 0,
    }
    if training.local_steps > 1 and training.local_epochs is not None:
        raise SpecError("training.local_steps: local_epochs says it too: give one of them")
    if not star:
        if given:
            raise SpecError("federation.exchange: nodes without a centre exchange models: leave it out")
        for key in ("training.server_lr", "training.server_momentum"):
            if local[key]:
                raise SpecError(f"{key}: there is no server: leave it out, or take the topology star")
        return ""
    if given == "gradients" and (used := next((key for key, used in local.items() if used), "")):
        raise SpecError(f"{used}: means nothing where gradients are exchanged: set federation.exchange to updates")
    return given or ("updates" if any(local.values()) else "gradients")


def _nodes(config: Config, liars: Sequence[int], roles: Mapping[NodeId, str], step: str) -> tuple[list[Any], list[int]]:
    """The nodes, here or described for workers, and how many samples each learns from; a liar's are those of most."""
    data, training, seed, every = config.data, config.training, config.federation.seed, range(config.nodes.count)
    options = {name: value for name in DATA if (value := getattr(data, name)) is not None}
    if data.name.lower() in ("digits", "synthetic"):
        options["seed"] = seed
    with at("data.name"):
        split = datasets.load(data.name, data.root, **options)
    with at("attack.name"):
        AttackNode(config.attack.name)
    learners = [node for node in every if config.attack.knowledge == "own" or node not in liars]
    chosen = {name: value for name in PARTITION if (value := getattr(data, name)) is not None}
    with at("data.partition"):
        parts = partition(data.partition, split.train_y, len(learners), seed=seed, **chosen)
        tested: list[Any] = [None] * len(parts)
        if data.own_test is not None:
            parts, tested = hold_out(parts, data.own_test, seed=seed)
    with at("model.name"):
        models = [_model(config, split) for _ in learners]
    settings: dict[int, dict[str, Any]] = {}
    for node, part, held, module in zip(learners, parts, tested, models, strict=True):
        steps = training.local_steps
        if training.local_epochs is not None:
            steps = training.local_epochs * max(1, len(part) // training.batch_size)
        settings[node] = {
            "learner": module,
            "data": (split.train_x[part], split.train_y[part]),
            "test": (split.test_x, split.test_y) if held is None else (split.train_x[held], split.train_y[held]),
            "local_steps": steps,
            "seed": seed + node,
            **{name: getattr(training, name) for name in SAME},
        }
    with at("training"):
        for each in settings.values():
            LearnerNode(**each)  # a mistake shows here, wherever the node is to live
    sizes = dict(zip(learners, map(len, parts), strict=True))
    makers: list[Callable[[], Any]] = [
        partial(_liar, config.attack.name, settings.get(node), step)
        if node in liars
        else partial(LearnerNode, **settings[node])
        for node in every
    ]
    if config.nodes.backend == INLINE:
        made = [make() for make in makers]
    else:
        made = [VirtualNode(make, node, roles[node]) for node, make in zip(every, makers, strict=True)]
    return made, [sizes.get(node, round(median(sizes.values()))) for node in every]


def _liar(attack: str, settings: Mapping[str, Any] | None, step: str) -> AttackNode:
    """A Byzantine node, with a learner of its own if it has data."""
    return AttackNode(attack, None if settings is None else LearnerNode(**settings), step)


def _weights(config: Config, rule: Operator, sizes: Sequence[int]) -> dict[NodeId, float] | None:
    """What each node counts by its samples, twice the median at most."""
    if not config.defence.sample_weights:
        return None
    if "sample_weights" not in rule.accepts:
        raise SpecError(f"defence.sample_weights: {rule} gives no node a weight of its own: take mean, or leave it out")
    return {node: float(min(size, 2 * median(sizes))) for node, size in enumerate(sizes)}


def _model(config: Config, split: datasets.Split) -> nn.Module:
    """The model of a name, or what the function or class `module:attr` gives; all nodes begin with the same one."""
    name, seed = config.model.name, config.federation.seed
    if ":" not in name:
        return make_model(name, split.shape, split.classes, seed)
    module, _, attribute = name.partition(":")
    try:
        maker = getattr(import_module(module), attribute)
        with random_numbers(seed):
            made = maker()
            with torch.no_grad():
                made.eval()
                made(split.train_x[:2])
                made.train()
    except Exception as error:
        raise SpecError(f"{name} gives no model for samples of shape {split.shape}: {one_line(error)}") from error
    if not isinstance(made, nn.Module):
        raise SpecError(f"{name} must give an nn.Module, got {type(made).__name__}")
    return made
