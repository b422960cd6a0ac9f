"""Settings of a federation that cannot work are told before anything runs."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping

from byzflow.errors import FederationError, did_you_mean
from byzflow.federation.member import Member
from byzflow.gossip.door import Run
from byzflow.gossip.effects import NodeId
from byzflow.gossip.network import SUPERVISOR
from byzflow.gossip.performer import can
from byzflow.gossip.weights import mixing
from byzflow.operators import Operator

ROLES = ("train", "eval", "test", "aggregate")


def check_names(ids: Collection[NodeId], named: Iterable[NodeId], roles: Mapping[NodeId, str]) -> None:
    """That there are nodes, none of them is the supervisor, all that are named are there, and roles read."""
    if not ids:
        raise FederationError("a federation needs at least one node")
    if SUPERVISOR in ids:
        raise FederationError(f"no node may have the id {SUPERVISOR!r}: the owner of a run speaks under it")
    if unknown := [str(id) for id in {*named, *roles} if id not in ids]:
        raise FederationError(f"no node {', '.join(unknown)}; there are {', '.join(map(str, ids))}")
    for id, role in roles.items():
        for word in role.split("-"):
            if word not in ROLES:
                raise FederationError(f"node {id} has no role {word!r} in {role!r}; {did_you_mean(word, ROLES)}")


def check_nodes(members: Iterable[Member], step: str) -> None:
    """That honest nodes that are here, and train, have the method that each round calls."""
    for member in members:
        if member.virtual is None and member.trains() and not member.byzantine:
            if isinstance(member.node, type):
                raise FederationError(f"node {member.id} is the class {member.node.__name__}: make one of it")
            if not can(member.node, step):
                kind = type(member.node).__name__
                raise FederationError(f"node {member.id} cannot train: {kind} has no {step}; see LearnerNode")


def check_numbers(run: Run, patience: float | None) -> None:
    """That shares, times and counts are in their ranges."""
    if not 0 < run.fraction <= 1:
        raise FederationError(f"fraction must be > 0 and <= 1, got {run.fraction!r}")
    if run.f < 0:
        raise FederationError(f"f must be >= 0, got {run.f!r}")
    for name, value in (("deadline", run.deadline), ("patience", patience)):
        if value is not None and not value > 0:
            raise FederationError(f"{name} must be > 0 seconds, or None, got {value!r}")
    if run.quorum is not None and not 1 <= run.quorum <= len(run.contributors):
        raise FederationError(f"quorum must be 1 to {len(run.contributors)}, the nodes that train, got {run.quorum!r}")


def check_heard(rule: Operator, run: Run, nodes: Iterable[NodeId]) -> None:
    """That each of these nodes, or the centre, hears enough for the rule in the first round, by weights that fit.

    Raises NotEnoughSenders; SpecError for edges whose weights sum to more than 1 around a node; FederationError where
    none of the nodes is honest.
    """
    if run.centre is not None:
        rule.check(len(run.sampled(0)))
        return
    graph = run.at(0)
    mixing(graph)
    heard = [1 + len(run.contributors & set(graph.in_neighbours(node))) for node in nodes]
    if not heard:
        raise FederationError("there is no honest node: nothing can be learned")
    rule.check(min(heard))
