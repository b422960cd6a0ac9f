"""byzflow-app: the strategy."""

from flwr.app import ArrayRecord, Context, MetricRecord
from flwr.serverapp import Grid, ServerApp
from flwr.serverapp.strategy import FedAvg

from byzflow_app.task import Net, load_held_out, test
from byzflow_flower import Robust, plain_errors

app = ServerApp()


@app.main()
def main(grid: Grid, context: Context) -> None:
    """Train with a strategy that up to f lying clients a round cannot steer."""
    plain_errors()  # too few clients for f, or a misspelt aggregator, is one line in the log
    config = context.run_config
    strategy = Robust(FedAvg(fraction_evaluate=config["fraction-evaluate"]), config["aggregator"], f=config["f"])
    strategy.start(
        grid=grid,
        initial_arrays=ArrayRecord(Net().state_dict()),
        num_rounds=config["num-server-rounds"],
        evaluate_fn=held_out,
    )


def held_out(server_round: int, arrays: ArrayRecord) -> MetricRecord:
    """Loss and accuracy on digits that no client has."""
    model = Net()
    model.load_state_dict(arrays.to_torch_state_dict())
    loss, accuracy = test(model, load_held_out())
    return MetricRecord({"loss": loss, "accuracy": accuracy})
