"""A Flower grid on which some nodes are one attacker who sees all honest replies before answering."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import replace
from typing import Any, Protocol

from flwr.app import ArrayRecord, ConfigRecord, Message, RecordDict
from flwr.serverapp import Grid
from numpy.typing import NDArray

import byzflow
from byzflow.attendance import shrunk_for
from byzflow.errors import NotEnoughSenders, SpecError
from byzflow.memory import extras_for
from byzflow.spec import parse_attack
from byzflow_flower.replies import only_record
from byzflow_flower.sent_model import SentModel, not_finite

PARTITION_RECORD = "byzflow"  # the record in which the mod `reveal_partition` sends the partition


class Defence(Protocol):
    """What an attacker knows of a strategy that is made robust: the rule of the round, and its state by node."""

    operator: byzflow.Operator
    state: Mapping[str, Any]


class AttackedGrid(Grid):
    """Replaces the training replies of some nodes by an omniscient attack on the honest ones.

        strategy.start(AttackedGrid(grid, "alie", f=3), ...)         # any strategy, Flower's own included
        strategy.start(AttackedGrid(grid, "opt_alie", f=3, against=strategy), ...)    # fitted to this defence

    The attack (`byzflow.attack`) is computed from the honest nodes' updates, reply minus what was sent, and where it
    takes them from what the attackers' own clients computed. An attacker's reply keeps its metrics and its integer
    arrays; if its client gave none, an honest reply's are used. Only attackers that were asked in a round attack in it.
    Evaluation, and messages sent with `push_messages`, are left alone.

    Parameters
    ----------
    grid : the grid to use.
    attack : such as "alie", "ipm" or "sign_flip". Its f is the number of attackers of the round.
    f : the attackers are the first f of the sorted node ids, fixed when training first starts.
    nodes : the attackers by id, or a function that says of each reply whether its node is one (see
        `first_partitions`: in a simulation, node ids differ from run to run). Instead of f.
    against : the defence that an adaptive attack is fitted to: a spec, an operator, or the `Robust` that is attacked.
        Of that, the rule of each round and all that it remembers are known. Other attacks make no use of it.
    extras : more arguments of the attack.

    Raises
    ------
    SpecError : `attack` does not read, is no attack, or is fitted to a defence and none is given.
    ValueError : both or none of f and nodes are given.
    """

    def __init__(
        self,
        grid: Grid,
        attack: str,
        *,
        f: int | None = None,
        nodes: Collection[int] | Callable[[Message], bool] | None = None,
        against: str | byzflow.Operator | Defence | None = None,
        **extras: Any,
    ) -> None:
        parsed = parse_attack(attack)
        if (f is None) == (nodes is None):
            raise ValueError("give either f, the number of attackers, or nodes, which ones they are")
        if "against" in parsed.accepts and against is None:
            raise SpecError(f"{attack} is fitted to a defence: pass against=, a spec or the strategy that is attacked")
        self.grid = grid
        self.attack = parsed
        self.against = against
        self._f = f
        self._nodes = nodes
        self._extras = extras

    def set_run(self, run: Any) -> None:
        """As the grid inside."""
        self.grid.set_run(run)

    @property
    def run(self) -> Any:
        """As the grid inside."""
        return self.grid.run

    def create_message(
        self, content: RecordDict, message_type: str, dst_node_id: int, group_id: str, ttl: float | None = None
    ) -> Message:
        """As the grid inside."""
        return self.grid.create_message(content, message_type, dst_node_id, group_id, ttl)

    def get_node_ids(self) -> Iterable[int]:
        """As the grid inside."""
        return self.grid.get_node_ids()

    def get_nodes(self) -> Any:
        """As the grid inside."""
        return self.grid.get_nodes()

    def push_messages(self, messages: Iterable[Message]) -> Iterable[str]:
        """As the grid inside: no attack."""
        return self.grid.push_messages(messages)

    def pull_messages(self, message_ids: Iterable[str]) -> Iterable[Message]:
        """As the grid inside: no attack."""
        return self.grid.pull_messages(message_ids)

    def send_and_receive(self, messages: Iterable[Message], *, timeout: float | None = None) -> list[Message]:
        """As the grid inside, with the attackers' training replies replaced."""
        messages = list(messages)
        training = any(message.metadata.message_type.split(".")[0] == "train" for message in messages)
        if training and self._nodes is None:
            self._nodes = frozenset(sorted(self.grid.get_node_ids())[: self._f])
        replies = list(self.grid.send_and_receive(messages, timeout=timeout))
        return self._attacked(messages, replies) if training else replies

    def _attacked(self, messages: Sequence[Message], replies: Sequence[Message]) -> list[Message]:
        sent = SentModel.of(only_record(messages[0], ArrayRecord)[1])
        lies = [self._is_attacker(reply) for reply in replies]
        honest = [(reply, _read(reply, sent)) for reply, lying in zip(replies, lies, strict=True) if not lying]
        seen = [(reply, arrays) for reply, arrays in honest if arrays]
        seen.sort(key=lambda each: each[0].metadata.src_node_id)  # "row 0" is the same node in every round
        if not any(lies) or not seen:
            return list(replies)
        model, model_arrays = seen[0]
        honest_updates = [sent.update(a) for _, a in seen]
        clean = {
            each.metadata.src_node_id: _read(each, sent) for each, lying in zip(replies, lies, strict=True) if lying
        }
        extras = dict(self._extras)
        if "own" in self.attack.accepts:  # where a client gave nothing of use, an honest update takes its place
            extras["own"] = [honest_updates[0] if a is None else sent.update(a) for a in clean.values()]
        order = [reply.metadata.src_node_id for reply, _ in seen] + list(clean)
        broken = sum(arrays is None and reply.has_content() for reply, arrays in honest)
        try:
            known = _known_of(self.against, order, broken, len(messages) - len(order) - broken)
        except NotEnoughSenders:  # the defence keeps the model, whatever is sent
            return list(replies)
        extras |= {name: value for name, value in known.items() if name in self.attack.accepts}
        outcome = replace(self.attack, f=sum(lies)).explain(honest_updates, **extras)
        self._extras = {**self._extras, **outcome.state}
        asked = {message.metadata.dst_node_id: message for message in messages}
        updates = iter(outcome.value)
        answers = []
        for reply, lying in zip(replies, lies, strict=True):
            if lying:
                arrays = sent.changed_by(next(updates), {name: model_arrays[name] for name in sent.buffers})
                content = dict((reply if reply.has_content() else model).content.items())
                content = {k: v for k, v in content.items() if not isinstance(v, ArrayRecord)}
                content[only_record(model, ArrayRecord)[0]] = arrays
                reply = Message(RecordDict(content), reply_to=asked[reply.metadata.src_node_id])
            answers.append(reply)
        return answers

    def _is_attacker(self, reply: Message) -> bool:
        if callable(self._nodes):
            return self._nodes(reply)
        return reply.metadata.src_node_id in (self._nodes or ())


def first_partitions(f: int) -> Callable[[Message], bool]:
    """Attackers are the nodes that hold data partitions 0 to f - 1, in every run the same.

    The server does not know who holds which partition: the ClientApp must use the mod `reveal_partition`.
    The function raises ValueError for a reply without it.
    """

    def holds_one(reply: Message) -> bool:
        if not reply.has_content():
            return False
        record = reply.content.get(PARTITION_RECORD)
        if not isinstance(record, ConfigRecord) or "partition-id" not in record:
            node = reply.metadata.src_node_id
            raise ValueError(f"node {node} does not say which partition it holds: give its app mods=[reveal_partition]")
        return int(record["partition-id"]) < f  # type: ignore[arg-type]

    return holds_one


def _known_of(
    against: str | byzflow.Operator | Defence | None, nodes: Sequence[int], broken: int, missing: int
) -> dict[str, Any]:
    """Extras of an adaptive attack whose poisoned rows come from these nodes, the honest ones first.

    Beside them so many honest replies are malformed, or missing: a `Robust` makes its f smaller by them.
    """
    if against is None or isinstance(against, str | byzflow.Operator):
        return {"against": against}
    operator = shrunk_for(against.operator, len(nodes), broken, missing)
    return {"against": operator, "against_state": extras_for(against.state, nodes)}


def _read(reply: Message, sent: SentModel) -> dict[str, NDArray[Any]] | None:
    """An honest reply's arrays, or None if there is nothing in it to build an attack on."""
    if not reply.has_content():
        return None
    try:
        arrays = sent.read(only_record(reply, ArrayRecord)[1])
    except ValueError:
        return None
    return None if not_finite(arrays) else arrays
