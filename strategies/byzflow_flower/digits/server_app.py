"""The server side: FedAvg made robust, its accuracy on held-out digits after each round."""

from __future__ import annotations

from collections.abc import Callable

from flwr.app import ArrayRecord, Context, MetricRecord
from flwr.serverapp import Grid, ServerApp
from flwr.serverapp.strategy import FedAvg

from byzflow.errors import NotEnoughSenders
from byzflow_flower.attacked_grid import AttackedGrid, first_partitions
from byzflow_flower.digits.settings import Settings
from byzflow_flower.digits.task import evaluate, load, make_model
from byzflow_flower.flower_log import plain_errors
from byzflow_flower.robust import Robust

app = ServerApp()


@app.main()
def main(grid: Grid, context: Context) -> None:
    """One run with the settings of the run-config; Flower's log shows accuracies and audits."""
    plain_errors()
    try:
        federate(grid, Settings.of(context.run_config))
    except NotEnoughSenders as error:
        advice = f'{error.why}; Flower simulates 2 nodes unless you add --federation-config "num-supernodes=10"'
        raise NotEnoughSenders(error.operator, error.needed, error.given, advice) from None


def federate(grid: Grid, settings: Settings, on_accuracy: Callable[[float], None] | None = None) -> Robust:
    """Train over `grid` and return the strategy, with its audit.

    `on_accuracy` hears the accuracy of the untrained model first, then that after each round.
    """
    _, test = load(settings.seed)

    def accuracy(server_round: int, arrays: ArrayRecord) -> MetricRecord:
        model = make_model(settings.seed)
        model.load_state_dict(arrays.to_torch_state_dict())
        loss, share = evaluate(model, test)
        if on_accuracy is not None:
            on_accuracy(share)
        return MetricRecord({"accuracy": share, "loss": loss})

    if settings.forges_replies:
        grid = AttackedGrid(grid, settings.attack, nodes=first_partitions(settings.f))
    # Accuracy is measured here, so no client is asked to evaluate.
    strategy = Robust(FedAvg(fraction_evaluate=0.0), settings.aggregator, f=settings.f)
    strategy.start(
        grid=grid,
        initial_arrays=ArrayRecord(make_model(settings.seed).state_dict()),
        num_rounds=settings.num_server_rounds,
        evaluate_fn=accuracy,
    )
    return strategy
