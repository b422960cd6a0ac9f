"""What takes part in a federation: honest nodes that learn, and Byzantine ones that lie."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from byzflow.errors import FederationError
from byzflow.operators import Attack
from byzflow.spec import parse, parse_attack


class Node(ABC):
    """A participant. Its methods run where it lives: here, or on a worker."""

    @abstractmethod
    def next_batch(self) -> tuple[Tensor, Tensor]:
        """(x, y): the data of its next step."""

    @abstractmethod
    def apply_server_gradient(self, gradient: Tensor) -> None:
        """Take a step by this flat gradient, which all nodes are given."""

    def ping(self) -> str:
        """A sign of life."""
        return "pong"


class HonestNode(Node):
    """A participant that follows the protocol. Subclass it with your model and data, or take a `LearnerNode`.

    A parameter server needs the three abstract methods. Gossip also needs `get_parameters` and `set_parameters`.
    """

    @abstractmethod
    def honest_gradient(self, x: Tensor, y: Tensor) -> Tensor:
        """(d,): the flat gradient of the loss on a batch."""

    def honest_gradient_for_next_batch(self) -> Tensor:
        """(d,): the flat gradient of the next batch."""
        x, y = self.next_batch()
        return self.honest_gradient(x, y).detach()

    def get_parameters(self) -> Tensor:
        """(d,): the model as a flat vector; a copy."""
        raise FederationError(f"{type(self).__name__} needs get_parameters() to take part in gossip, or to rejoin")

    def set_parameters(self, vector: Tensor) -> None:
        """Make a flat vector (d,) the model."""
        raise FederationError(
            f"{type(self).__name__} needs set_parameters(vector) to take part in gossip, or to rejoin"
        )

    def samples(self) -> float:
        """How many samples it learns from, as far as it knows; 1 unless a subclass says so."""
        return 1.0

    lr: float = 0.05
    """Step size of `half_step`."""

    def set_lr(self, lr: float) -> None:
        """Another step size."""
        self.lr = lr

    def local_update(self) -> Tensor:
        """(d,): how far several local steps lead, where a star exchanges updates."""
        raise FederationError(f"{type(self).__name__} needs local_update() where updates are exchanged")

    def apply_server_update(self, update: Tensor) -> None:
        """Take an aggregated update (d,)."""
        self.set_parameters(self.get_parameters() + update)

    def half_step(self) -> Tensor:
        """(d,): the model after a step on the next batch, which gossip then mixes."""
        return self.get_parameters() - self.lr * self.honest_gradient_for_next_batch()

    def adopt(self, model: Tensor) -> None:
        """Go on from a mixed model (d,)."""
        self.set_parameters(model)

    def evaluate(self) -> dict[str, float]:
        """Metrics on the node's own test data; none unless a subclass has some."""
        return {}


class ByzantineNode(Node):
    """A participant that sends what it likes. Subclasses say what in `byzantine_gradient`."""

    learner: HonestNode | None = None
    """An honest node of its own, where it has one, whose state is its state."""

    @abstractmethod
    def byzantine_gradient(self, x: Tensor, y: Tensor, honest_grads: Sequence[Tensor] | None = None) -> Tensor:
        """(d,): what it sends, made of its batch and of the honest vectors, where it knows them."""

    def next_batch(self) -> tuple[Tensor, Tensor]:
        """No data."""
        return torch.empty(0), torch.empty(0, dtype=torch.long)

    def samples(self) -> float:
        """How many samples it claims to learn from: more than anybody has."""
        return 1e12

    def apply_server_gradient(self, gradient: Tensor) -> None:
        """Do not care."""

    def apply_server_update(self, update: Tensor) -> None:
        """Do not care."""

    def adopt(self, model: Tensor) -> None:
        """Do not care."""

    def byzantine_gradient_for_next_batch(self, honest_grads: Sequence[Tensor] | None = None) -> Tensor:
        """(d,): what it sends in a round."""
        x, y = self.next_batch()
        return self.byzantine_gradient(x, y, honest_grads).detach()

    def lie(self, honest: Sequence[Tensor], place: int, f: int) -> Tensor | None:
        """(d,): what the attacker at this place (from 0) of f sends to who hears these honest vectors."""
        return self.byzantine_gradient_for_next_batch(honest)

    def half_lie(self, honest: Sequence[Tensor], place: int, f: int) -> Tensor | None:
        """(d,): the same in gossip, where the vectors are models after their half steps."""
        return self.lie(honest, place, f)

    def state(self) -> dict[str, Any]:
        """What it needs to go on: its learner's state."""
        gives = getattr(self.learner, "state", None)
        return {} if gives is None else {"learner": gives()}

    def load_state(self, state: Mapping[str, Any]) -> None:
        """Take up what `state` gave."""
        if (takes := getattr(self.learner, "load_state", None)) is not None:
            takes(state["learner"])


class PoisonedNode(ByzantineNode):
    """A participant that lies with its data alone: what it sends is honest work on batches that are not.

    PoisonedNode(LearnerNode(module, (x, label_flip(y, classes=10)), lr=0.1))
    """

    learner: HonestNode

    def __init__(self, learner: HonestNode) -> None:
        self.learner = learner

    def byzantine_gradient(self, x: Tensor, y: Tensor, honest_grads: Sequence[Tensor] | None = None) -> Tensor:
        """The gradient on its next batch."""
        return self.learner.honest_gradient_for_next_batch()

    def half_lie(self, honest: Sequence[Tensor], place: int, f: int) -> Tensor | None:
        """Its model after a half step."""
        return self.learner.half_step()

    def apply_server_gradient(self, gradient: Tensor) -> None:
        """Its learner follows."""
        self.learner.apply_server_gradient(gradient)

    def adopt(self, model: Tensor) -> None:
        """Its learner follows."""
        self.learner.adopt(model)


class AttackNode(ByzantineNode):
    """A participant that runs a registered attack, such as "alie" or "sign_flip(scale=4)", with all others of its kind.

    With a `learner` it knows its own data alone: the attack is made of this node's honest vector, whatever others send.
    """

    def __init__(self, attack: str | Attack, learner: HonestNode | None = None, step: str | None = None) -> None:
        """Raises SpecError for what is no attack."""
        parse_attack(attack)
        self.attack, self.learner = attack, learner
        self._step = step or "honest_gradient_for_next_batch"
        self._lies = 0

    def byzantine_gradient(self, x: Tensor, y: Tensor, honest_grads: Sequence[Tensor] | None = None) -> Tensor:
        """The attack on these honest vectors alone."""
        made = self.lie(list(honest_grads or ()), 0, 1)
        if made is None:
            raise FederationError("an attack needs at least one honest vector, or a learner of its own")
        return made

    def lie(self, honest: Sequence[Tensor], place: int, f: int) -> Tensor | None:
        """Row `place` of the f rows of the attack; None if there is nothing to make it of."""
        return self._lie(honest, place, f, self._step)

    def half_lie(self, honest: Sequence[Tensor], place: int, f: int) -> Tensor | None:
        """The same on models after half steps."""
        return self._lie(honest, place, f, "half_step")

    def _lie(self, honest: Sequence[Tensor], place: int, f: int, step: str) -> Tensor | None:
        if self.learner is not None:
            honest, place, f = [getattr(self.learner, step)()], 0, 1
        if not honest:
            return None
        operator = parse(self.attack, f=f)
        assert isinstance(operator, Attack)
        extras: dict[str, Any] = {"own": list(honest)[:f]} if operator.knowledge != "omniscient" else {}
        if "round" in operator.accepts:
            extras["round"] = self._lies  # new noise each time
            self._lies += 1
        rows = operator(list(honest), **extras)
        lie: Tensor = rows[place if len(rows) > place else 0]
        return lie

    def state(self) -> dict[str, Any]:
        """What it needs to go on."""
        return super().state() | {"lies": self._lies}

    def load_state(self, state: Mapping[str, Any]) -> None:
        """Take up what `state` gave."""
        super().load_state(state)
        self._lies = state["lies"]

    def apply_server_gradient(self, gradient: Tensor) -> None:
        """Its learner follows, so that what it knows is up to date."""
        if self.learner is not None:
            self.learner.apply_server_gradient(gradient)

    def apply_server_update(self, update: Tensor) -> None:
        """Its learner follows."""
        if isinstance(self.learner, HonestNode):
            self.learner.apply_server_update(update)

    def adopt(self, model: Tensor) -> None:
        """Its learner follows."""
        if self.learner is not None:
            self.learner.adopt(model)
