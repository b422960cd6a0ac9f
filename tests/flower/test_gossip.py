"""Gossip relayed by the server: what it computes, what it bears, and what it names."""

from __future__ import annotations

import logging
import math
from collections.abc import Callable, Iterable
from typing import Any

import networkx as nx
import numpy as np
import pytest
from flwr.app import ArrayRecord, ConfigRecord, Context, Error, Message, MetricRecord, RecordDict
from flwr.clientapp import ClientApp
from flwr.serverapp.strategy import FedAvg, Result

from byzflow.errors import ByzflowError, SpecError
from byzflow_flower import GossipStrategy, LocalGrid, byzantine, gossip_client
from byzflow_flower.digits import client_app, task
from byzflow_flower.digits.settings import Settings
from byzflow_flower.mods import send, sign_flip
from tests.flower.federation import BATCH_NORM, client, distance, initial, numpy, record, reply, target, train

NODES = 8
LIAR = 103


def app(
    answer: Callable[..., Message] = reply, spec: str = "trimmed_mean", f: int | None = 1, **more: Any
) -> ClientApp:
    """An app of the test federation that mixes."""
    made = client(answer, **more)
    gossip_client(made, spec, f)
    return made


def grid(spec: str = "trimmed_mean", f: int | None = 1, liar: ClientApp | None = None) -> LocalGrid:
    honest = app(spec=spec, f=f)
    return LocalGrid({100 + place: honest for place in range(NODES)} | ({LIAR: liar} if liar else {}))


def start(
    strategy: GossipStrategy, on: LocalGrid, rounds: int = 3, arrays: ArrayRecord | None = None, **more: Any
) -> Result:
    return strategy.start(on, arrays or initial(), num_rounds=rounds, **more)


@pytest.mark.parametrize(
    ("spec", "n", "degree"),
    [("ring", 8, 2), ("ring", 3, 2), ("ring", 2, 1), ("k_regular:4", 9, 4), ("k-regular:3", 8, 3), ("complete", 5, 4)],
)
def test_named_graphs(spec: str, n: int, degree: int) -> None:
    graph = GossipStrategy(spec, n).graph
    assert {graph.degree(place) for place in graph.nodes} == {degree}
    assert graph.nodes == tuple(range(n))


@pytest.mark.parametrize("spec", ["rings", "ring:3", "k_regular:x", "k_regular:3", "k_regular:9", "k_regular:0"])
def test_graphs_that_do_not_read(spec: str) -> None:
    with pytest.raises(SpecError, match="k_regular:"):
        GossipStrategy(spec, 9)
    with pytest.raises(SpecError, match="2 to 10000 nodes"):
        GossipStrategy("ring", 1)
    with pytest.raises(SpecError, match="does not change"):
        GossipStrategy("random_matchings", 4)


def test_graphs_that_are_refused() -> None:
    lonely = nx.path_graph(3)
    lonely.add_edge(7, 7)
    for graph in (lonely, nx.DiGraph([(0, 1), (1, 0)]), nx.empty_graph(3), nx.path_graph(1)):
        with pytest.raises(SpecError, match="each of its nodes has a neighbour"):
            GossipStrategy(graph)
    with pytest.raises(SpecError, match=r"nodes=5, but the graph has 4"):
        GossipStrategy(nx.star_graph(3), 5)
    with pytest.raises(SpecError, match="how many nodes"):
        GossipStrategy("ring")


def test_with_mean_on_the_complete_graph_every_node_has_fedavgs_model() -> None:
    on = grid("mean", None)
    strategy = GossipStrategy("complete", NODES)
    result = start(strategy, on)
    expected = numpy(train(FedAvg(), grid("mean", None)).arrays)
    for model in [result.arrays, *strategy.models.values()]:
        for name, values in numpy(model).items():
            np.testing.assert_allclose(values, expected[name], atol=1e-6)
            assert values.dtype == np.float32
    assert strategy.audit[-1].consensus_distance == pytest.approx(0, abs=1e-5)


def test_one_round_of_mean_on_a_path_is_the_mean_of_each_neighbourhood() -> None:
    strategy = GossipStrategy(nx.path_graph(["a", "b", "c"]))
    start(strategy, LocalGrid(dict.fromkeys((5, 6, 7), app(spec="mean", f=None))), rounds=1)
    stepped = [0.5 * target(place)["layer.weight"] for place in range(3)]
    for node, heard in {5: (0, 1), 6: (0, 1, 2), 7: (1, 2)}.items():
        expected = np.mean([stepped[place] for place in heard], axis=0)
        np.testing.assert_allclose(numpy(strategy.models[node])["layer.weight"], expected, atol=1e-6)


def test_buffers_are_medians_and_keep_their_dtype() -> None:
    strategy = GossipStrategy("ring", NODES)
    result = start(strategy, grid(), rounds=2, arrays=initial(**BATCH_NORM))
    for model in [result.arrays, *strategy.models.values()]:
        found = numpy(model)
        assert found["norm.num_batches_tracked"].item() == 2**40 + 2
        assert (found["steps"].dtype, found["steps"].tolist()) == (np.uint8, [252, 9])


def changed(**arrays: Any) -> Callable[..., Message]:
    """An answer with some arrays replaced, or (None) left out."""

    def answer(message: Message, model: dict[str, np.ndarray], metrics: dict[str, Any]) -> Message:
        merged = model | {name.replace("__", "."): values for name, values in arrays.items()}
        return reply(message, {name: values for name, values in merged.items() if values is not None}, metrics)

    return answer


def fails(message: Message, model: dict[str, np.ndarray], metrics: dict[str, Any]) -> Message:
    raise RuntimeError("out of luck")


def two_models(message: Message, model: dict[str, np.ndarray], metrics: dict[str, Any]) -> Message:
    content = {"arrays": record(model), "more": record(model), "metrics": MetricRecord(metrics)}
    return Message(RecordDict(content), reply_to=message)


def no_model(message: Message, model: dict[str, np.ndarray], metrics: dict[str, Any]) -> Message:
    return Message(RecordDict({"metrics": MetricRecord(metrics)}), reply_to=message)


def cut_off(message: Message, model: dict[str, np.ndarray], metrics: dict[str, Any]) -> Message:
    arrays = record(model)
    arrays["layer.weight"].data = arrays["layer.weight"].data[:-4]
    return reply(message, arrays, metrics)


MALFORMED = {
    "NaN": (changed(layer__bias=np.full(4, np.nan, np.float32)), "array 'layer.bias' holds 4 NaN or Inf"),
    "shape": (changed(layer__bias=np.zeros((2, 2), np.float32)), "array 'layer.bias' has shape (2, 2), (4,) was sent"),
    "dtype": (changed(layer__bias=np.zeros(4)), "array 'layer.bias' is float64, float32 was sent"),
    "missing": (changed(layer__bias=None), "other keys than sent: missing 'layer.bias'"),
    "extra": (changed(other=np.zeros(3)), "other keys than sent: extra 'other'"),
    "cut off": (cut_off, "array 'layer.weight' holds 44 bytes, its shape needs 48"),
}


@pytest.mark.parametrize("name", MALFORMED)
@pytest.mark.parametrize("graph", ["ring", "k_regular:4"])
def test_a_malformed_neighbour_is_dropped_and_named_by_its_neighbours(name: str, graph: str) -> None:
    answer, reason = MALFORMED[name]
    strategy = GossipStrategy(graph, NODES)
    start(strategy, grid(liar=app(answer)))
    neighbours = {100 + place for place in strategy.graph.neighbours(LIAR - 100)}
    for audit in strategy.audit:
        assert audit.dropped.keys() - {LIAR} == neighbours  # to the liar, the honest ones may be malformed
        for node in neighbours:
            (dropped,) = audit.dropped[node]
            assert (dropped.node_id, dropped.reason) == (LIAR, reason)
    for node in strategy.models.keys() - {LIAR}:
        assert distance(strategy.models[node]) < 0.9
    assert strategy.audit[-1].consensus_distance < 0.5


@pytest.mark.parametrize(
    ("answer", "reason"),
    [
        (fails, "error 2: RuntimeError: out of luck"),
        (two_models, "it holds 2 ArrayRecords, must be 1"),
        (no_model, "it holds 0 ArrayRecords, must be 1"),
        (changed(layer__bias=np.zeros(100_000, np.float32)), "its model has 400"),
    ],
    ids=["error", "two models", "no model", "too large"],
)
def test_what_cannot_be_relayed_is_named_by_the_server(answer: Callable[..., Message], reason: str) -> None:
    strategy = GossipStrategy("ring", NODES)
    result = start(strategy, grid(liar=app(answer)))
    for audit in strategy.audit:
        (rejected,) = audit.rejected
        assert (rejected.node_id, rejected.reason[: len(reason)]) == (LIAR, reason)
        assert not audit.dropped
    assert result.train_metrics_clientapp[3][f"gossip-rejected/{LIAR}"] == 1
    for node in strategy.models.keys() - {LIAR}:
        assert distance(strategy.models[node]) < 0.9


class Lossy(LocalGrid):
    """Loses the replies of one node, and delivers those of another twice."""

    def send_and_receive(self, messages: Iterable[Message], *, timeout: float | None = None) -> list[Message]:
        replies = [each for each in super().send_and_receive(messages) if each.metadata.src_node_id != LIAR]
        return replies + replies[:1]


def test_silence_and_repetition_are_named_and_borne() -> None:
    strategy = GossipStrategy("k_regular:4", NODES)
    start(strategy, Lossy(dict.fromkeys(range(100, 108), app())))
    reasons = {(each.node_id, each.reason) for each in strategy.audit[-1].rejected}
    assert reasons == {(LIAR, "no reply"), (100, "it was not asked, or has answered already")}
    assert max(distance(model) for node, model in strategy.models.items() if node != LIAR) < 0.9
    assert distance(strategy.models[LIAR]) == distance(initial())  # it has the model it started from


class Loses(LocalGrid):
    """Says of one node, in its own name, that it is lost: as a SuperLink does when heartbeats stay out."""

    def send_and_receive(self, messages: Iterable[Message], *, timeout: float | None = None) -> list[Message]:
        replies = super().send_and_receive(messages)
        lost = {message.metadata.message_id for message in messages if message.metadata.dst_node_id == LIAR}
        for place, each in enumerate(replies):
            if each.metadata.reply_to_message_id in lost:
                replies[place] = Message(Error(5, "Node Unavailable"), reply_to=each)
                replies[place].metadata.__dict__.update(_src_node_id=1, _reply_to_message_id=lost.pop())
        return replies


def test_a_lost_node_is_named_though_the_superlink_says_so() -> None:
    strategy = GossipStrategy("ring", NODES)
    start(strategy, Loses(dict.fromkeys(range(100, 108), app())))
    for audit in strategy.audit:
        assert [(each.node_id, each.reason) for each in audit.rejected] == [(LIAR, "error 5: Node Unavailable")]


def test_finite_but_huge_numbers_move_nobody_under_the_rule_and_everybody_under_the_mean() -> None:
    liar = changed(layer__weight=np.full((3, 4), 1e30, np.float32))
    for spec, f, survives in (("trimmed_mean", 1, True), ("nnm | trimmed_mean", 1, True), ("mean", None, False)):
        strategy = GossipStrategy("ring", NODES)
        start(strategy, grid(spec, f, app(liar, spec, f)), rounds=4)
        worst = max(distance(model) for node, model in strategy.models.items() if node != LIAR)
        assert (worst < 0.9) is survives
        assert math.isfinite(strategy.audit[-1].consensus_distance)


def test_a_false_accusation_is_a_claim_of_one_node_and_bounded() -> None:
    liar = client()

    @liar.query("mix")
    def accuse(message: Message, context: Context) -> Message:
        everybody = [f"{node} it is bad\n" * 100 for node in (102, 102, 104, 105, 10**30)] + ["", "x y"]
        report = ConfigRecord({"dropped": everybody, "kept-model": "why\n" * 1000})
        return Message(RecordDict({"arrays": message.content["arrays"], "gossip": report}), reply_to=message)

    strategy = GossipStrategy("ring", NODES)
    start(strategy, grid(liar=liar), rounds=1)
    (audit,) = strategy.audit
    assert not audit.rejected
    assert [(node, [each.node_id for each in dropped]) for node, dropped in audit.dropped.items()] == [(LIAR, [102])]
    assert all(len(line) < 1200 and "\n" not in line for line in audit.lines())


def test_a_node_whose_model_became_infinite_is_named_and_goes_on_from_its_last_good_one() -> None:
    def diverges(message: Message, model: dict[str, np.ndarray], metrics: dict[str, Any]) -> Message:
        if message.content["config"]["server-round"] == 2:
            model["layer.bias"] = np.full(4, np.inf, np.float32)
        return reply(message, model, metrics)

    strategy = GossipStrategy("ring", NODES)
    start(strategy, grid(liar=app(diverges)), rounds=4)
    (rejected,) = strategy.audit[1].rejected
    assert rejected.node_id == LIAR
    assert "the own model cannot be mixed: array 'layer.bias' holds 4 NaN or Inf" in rejected.reason
    assert not strategy.audit[3].rejected
    assert not strategy.audit[3].dropped
    assert distance(strategy.models[LIAR]) < 0.9


def test_mistakes_end_the_first_round_in_one_line() -> None:
    with pytest.raises(ByzflowError, match=r"no node could mix.*krum\(f=1\) needs at least 5 senders, got 3"):
        start(GossipStrategy("ring", NODES), grid("krum", 1))
    with pytest.raises(ByzflowError, match=r"no node could mix.*did you mean krum"):
        start(GossipStrategy("ring", NODES), grid("krumm", 1))
    with pytest.raises(ByzflowError, match="no node could mix"):  # nothing is mounted
        start(GossipStrategy("ring", NODES), LocalGrid(dict.fromkeys(range(NODES), client())))
    with pytest.raises(ByzflowError, match="no node trained; node 0: error 2: RuntimeError: out of luck"):
        start(GossipStrategy("ring", NODES), LocalGrid(dict.fromkeys(range(NODES), app(fails))))
    with pytest.raises(ByzflowError, match=r"the graph has 9 nodes, but 8 are connected after 0\.1 s"):
        start(GossipStrategy("ring", 9, patience=0.1), grid())


def test_too_few_well_formed_neighbours_keep_the_own_model_and_say_so() -> None:
    bad = app(MALFORMED["NaN"][0])
    strategy = GossipStrategy("complete", 3)
    start(strategy, LocalGrid({1: app(spec="krum", f=0), 2: bad, 3: bad}), rounds=1)
    assert "krum(f=0) needs at least 3 senders, got 1" in strategy.audit[0].kept[1]
    np.testing.assert_allclose(numpy(strategy.models[1])["layer.weight"], 0.5 * target(0)["layer.weight"], atol=1e-6)


def test_mods_that_lie_in_training_leave_mixing_alone() -> None:
    honest = app()
    liar = ClientApp(mods=[sign_flip])

    @liar.train()
    def step(message: Message, context: Context) -> Message:
        arrays = {name: values + 1 for name, values in numpy(message.content["arrays"]).items()}
        return reply(message, arrays, {"num-examples": 1})

    gossip_client(liar, "trimmed_mean", f=1)
    strategy = GossipStrategy("ring", NODES)
    start(strategy, LocalGrid({100 + place: honest for place in range(NODES)} | {LIAR: liar}), rounds=1)
    assert not strategy.audit[0].rejected
    assert not strategy.audit[0].dropped


@pytest.mark.slow
@pytest.mark.parametrize("graph", ["ring", "k_regular:4"])
def test_digits_are_learned_by_robust_mixing_and_lost_by_the_mean(graph: str) -> None:
    settings = Settings(f=1, dirichlet_alpha=10.0)
    _, test = task.load(0)

    def accuracy(server_round: int, arrays: ArrayRecord) -> MetricRecord:
        model = task.make_model(0)
        model.load_state_dict(arrays.to_torch_state_dict())
        return MetricRecord({"accuracy": task.evaluate(model, test)[1]})

    def worst(spec: str, f: int | None) -> tuple[float, float]:
        node = ClientApp()
        node.train(mods=[byzantine(send("sign_flip(scale=10)"), f=1)])(client_app.train)
        gossip_client(node, spec, f)
        strategy = GossipStrategy(graph, NODES)
        arrays = ArrayRecord(task.make_model(0).state_dict())
        on = LocalGrid(dict.fromkeys(range(NODES), node), run_config=settings.run_config())
        result = strategy.start(on, arrays, num_rounds=10, evaluate_fn=accuracy)
        honest = [float(accuracy(10, strategy.models[each])["accuracy"]) for each in range(1, NODES)]  # type: ignore[arg-type]
        return min(honest), float(result.evaluate_metrics_serverapp[10]["accuracy"])  # type: ignore[arg-type]

    logging.getLogger("flwr").setLevel(logging.WARNING)
    try:
        robust, median = worst("trimmed_mean", 1)
        assert robust > 0.7
        assert median > 0.8
        assert worst("mean", None)[0] < 0.3
    finally:
        logging.getLogger("flwr").setLevel(logging.INFO)
