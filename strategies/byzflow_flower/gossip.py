"""Gossip relayed by the server: each node has its own model and mixes it with its neighbours'.

The step between Flower's star and gossip without a server: Flower's nodes can only talk to the SuperLink, so a
ServerApp carries each neighbour's model to whom the graph says. It does no averaging and judges no model, but it
still sees all of them.
"""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from logging import INFO, WARNING, getLogger

import networkx as nx
from flwr.app import ArrayRecord, ConfigRecord, Message, MessageType, MetricRecord, RecordDict
from flwr.serverapp import Grid
from flwr.serverapp.strategy import Result

from byzflow.errors import ByzflowError, SpecError
from byzflow.gossip.topology import Topology, topology
from byzflow_flower.audit import Rejection
from byzflow_flower.gossip_round import Evaluate, GossipRound, consensus, evaluated
from byzflow_flower.mixing import CONFIG, NEIGHBOURS, OWN, PEER, dropped_by, read_models
from byzflow_flower.replies import BadReply, only_record
from byzflow_flower.sent_model import BATCH_NORM, SentModel

log = getLogger("flwr").log  # Flower's own logger
SLACK = 4096  # bytes that a model may be larger than what was sent: headers of .npy files may differ
MIX = "query.mix"  # not train.*: mods that act on training leave it alone
Answers = dict[int, tuple[ArrayRecord, Message]]  # by node: its model, and the reply that held it


class GossipStrategy:
    """Trains one model a node: a local step on each, then each mixes its own with its neighbours'.

        GossipStrategy("k_regular:4", nodes=8).start(grid, initial_arrays, num_rounds=10)

    A round is two exchanges: `train`, as every strategy sends it, with the node's own model; then `query.mix` with
    the stepped model and, as `peer/<node id>`, those of its neighbours, to be mounted by
    `byzflow_flower.gossip_client(app, spec, f)`. The rule and its f, per neighbourhood, are the clients' own. It is
    no `Strategy`, for there is no global model to wrap, but `start` takes and returns what theirs do.

    The server judges no model for the nodes. It relays a reply with one ArrayRecord that is no larger than the
    initial model, and names the others. A node that is silent or fails in a round, or whose model cannot be read,
    goes on from its last good one, and its neighbours do without it. So a round is bounded: 2 n messages, each of at
    most 1 + degree models, and two timeouts.

    Parameters
    ----------
    graph : "ring", "k_regular:K", "complete", or another that `byzflow.gossip.topology.topology` reads: a name, an
        undirected and connected networkx graph, a `Topology`.
    nodes : how many nodes take part, for a graph given by name; a networkx graph has them.
    patience : seconds to wait until so many nodes are connected.
    buffer_names : shell patterns of floating arrays that are buffers, as for `Robust`.

    Attributes
    ----------
    graph : the `Topology`, on places 0 to n - 1; place i is the i-th smallest node id.
    models : each node's latest good model, by node id: finite, and of the initial one's keys, shapes and dtypes.
    audit : a `GossipRound` for each round.

    Raises
    ------
    SpecError : the graph does not read, is directed, changes, is not connected, or joins a node to itself.
    """

    def __init__(
        self,
        graph: str | nx.Graph | Topology,
        nodes: int | None = None,
        *,
        patience: float = 60,
        buffer_names: Sequence[str] = BATCH_NORM,
    ) -> None:
        if isinstance(graph, str) and nodes is None:
            raise SpecError(f"how many nodes take part? Write GossipStrategy({graph!r}, nodes=...)")
        if not isinstance(graph, str) and nodes not in (None, len(graph)):
            raise SpecError(f"nodes={nodes}, but the graph has {len(graph)}")
        if isinstance(graph, nx.Graph) and (
            graph.is_directed() or len(graph) < 2 or any(set(graph[node]) <= {node} for node in graph)
        ):
            raise SpecError("a gossip graph is undirected, and each of its nodes has a neighbour")
        read = topology(graph, nodes)
        if not isinstance(read, Topology) or read.directed:
            raise SpecError(f"a gossip graph that the server relays is undirected and does not change, got {graph!r}")
        self.graph = read.renamed(range(len(read)))
        self.patience = patience
        self.buffer_names = tuple(buffer_names)
        self.models: dict[int, ArrayRecord] = {}
        self.audit: list[GossipRound] = []

    def start(
        self,
        grid: Grid,
        initial_arrays: ArrayRecord,
        num_rounds: int = 3,
        timeout: float = 3600,
        train_config: ConfigRecord | None = None,
        evaluate_fn: Evaluate | None = None,
    ) -> Result:
        """Run the rounds, as a Flower strategy's `start`.

        `evaluate_fn` is called with each node's model, so n times a round; what is reported is each metric's median
        over the nodes. The result's arrays are the models' median, coordinate by coordinate.

        Raises ByzflowError if too few nodes connect, or if in the first round no node trains, or none can mix.
        """
        initial = SentModel.of(initial_arrays, self.buffer_names)
        neighbours = self._neighbours(self._connected(grid))
        self.models = dict.fromkeys(neighbours, initial_arrays)
        result = Result(arrays=initial_arrays)
        for server_round in range(1, num_rounds + 1):
            log(INFO, "[ROUND %s/%s]", server_round, num_rounds)
            config = ConfigRecord({**(train_config or {}), "server-round": server_round})
            messages = [
                Message(RecordDict({OWN: model, CONFIG: config}), node, MessageType.TRAIN)
                for node, model in self.models.items()
            ]
            stepped, rejected = self._exchange(grid, messages, timeout, initial)
            self._insist(stepped, rejected, "no node trained")
            messages = [_with_neighbours(node, neighbours[node], stepped) for node in stepped]
            mixed, silent = self._exchange(grid, messages, timeout, initial)
            self._insist(mixed, silent, "no node could mix its neighbours' models")

            good, bad = read_models(initial, _models(mixed))
            fallback, _ = read_models(initial, {n: model for n, model in _models(stepped).items() if n not in good})
            self.models |= {node: stepped[node][0] for node in fallback} | {node: mixed[node][0] for node in good}
            result.arrays, distance = consensus(initial, list(read_models(initial, self.models)[0].values()))

            said = {node: dropped_by(reply, neighbours[node]) for node, (_, reply) in mixed.items()}
            self.audit.append(
                GossipRound(
                    server_round,
                    tuple(rejected + silent + bad),
                    {node: dropped for node, (dropped, _) in said.items() if dropped},
                    {node: why for node, (_, why) in said.items() if why},
                    distance,
                )
            )
            for number, line in enumerate(self.audit[-1].lines()):
                log(INFO, "gossip: %s" if not number else "\t> %s", line)
            named = {f"gossip-rejected/{each.node_id}": 1 for each in self.audit[-1].rejected}
            result.train_metrics_clientapp[server_round] = MetricRecord({"consensus-distance": distance, **named})
            if evaluate_fn is not None and (metrics := evaluated(evaluate_fn, server_round, self.models.values())):
                log(INFO, "\t└──> Median over the nodes: %s", metrics)
                result.evaluate_metrics_serverapp[server_round] = metrics
        return result

    def _connected(self, grid: Grid) -> list[int]:
        """The nodes that take part."""
        deadline = time.monotonic() + self.patience
        while len(nodes := sorted(set(grid.get_node_ids()))) < len(self.graph):
            if time.monotonic() > deadline:
                raise ByzflowError(
                    f"the graph has {len(self.graph)} nodes, but {len(nodes)} are connected after "
                    f"{self.patience:g} s; start more, or make the graph smaller"
                )
            time.sleep(min(1, self.patience / 10))
        return nodes[: len(self.graph)]

    def _neighbours(self, nodes: Sequence[int]) -> dict[int, list[int]]:
        """The neighbours of each node."""
        named = self.graph.renamed(nodes)
        return {node: [int(other) for other in named.neighbours(node)] for node in nodes}

    def _exchange(
        self, grid: Grid, messages: Sequence[Message], timeout: float, initial: SentModel
    ) -> tuple[Answers, list[Rejection]]:
        """The model in each node's reply, with the reply, and the nodes without one that can be relayed."""
        replies = list(grid.send_and_receive(messages, timeout=timeout))
        asked = {message.metadata.message_id: message.metadata.dst_node_id for message in messages}
        unanswered = set(asked.values())
        answers: Answers = {}
        rejected: list[Rejection] = []
        bound = _size(initial.record)
        for reply in replies:
            node = reply.metadata.src_node_id
            if reply.has_error():  # that a node is lost is said by the SuperLink, in its own name
                node = asked.get(reply.metadata.reply_to_message_id, node)
            if node not in unanswered:
                rejected.append(Rejection(node, "it was not asked, or has answered already", malformed=False))
                continue
            unanswered.remove(node)
            if reply.has_error():
                rejected.append(Rejection(node, f"error {reply.error.code}: {reply.error.reason}", malformed=False))
                continue
            try:
                record = only_record(reply, ArrayRecord)[1]
            except BadReply as bad:
                rejected.append(Rejection(node, str(bad)))
                continue
            if (size := _size(record)) > bound + SLACK:
                rejected.append(Rejection(node, f"its model has {size} bytes, {bound} were sent"))
                continue
            answers[node] = record, reply
        return answers, rejected + [Rejection(node, "no reply", malformed=False) for node in sorted(unanswered)]

    def _insist(self, answers: Mapping[int, object], rejected: Sequence[Rejection], what: str) -> None:
        """In the first round, nobody's answer is a mistake in the app, not a fault to bear."""
        if answers:
            return
        first = f"node {rejected[0].node_id}: {rejected[0].reason}"
        if not self.audit:
            raise ByzflowError(f"{what}; {first}")
        log(WARNING, "gossip: %s; %s", what, first)


def _size(record: ArrayRecord) -> int:
    """Bytes of names and arrays."""
    return sum(len(name.encode()) + len(array.data) for name, array in record.items())


def _models(answers: Answers) -> dict[int, ArrayRecord]:
    return {node: model for node, (model, _) in answers.items()}


def _with_neighbours(node: int, neighbours: Sequence[int], stepped: Answers) -> Message:
    """The message to mix: the node's own model, and those of its neighbours that stepped in this round."""
    records: dict[str, ArrayRecord | ConfigRecord] = {OWN: stepped[node][0]}
    records |= {f"{PEER}{other}": stepped[other][0] for other in neighbours if other in stepped}
    records[CONFIG] = ConfigRecord({NEIGHBOURS: len(neighbours)})
    return Message(RecordDict(records), node, MIX)  # type: ignore[arg-type]
