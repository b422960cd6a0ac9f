"""The relay: it carries the neighbours' models, and measures every node's model on held-out digits."""

from flwr.app import ArrayRecord, Context, MetricRecord
from flwr.serverapp import Grid, ServerApp

from byzflow_flower import GossipStrategy, plain_errors
from byzflow_flower.digits.task import evaluate, load, make_model

app = ServerApp()


@app.main()
def main(grid: Grid, context: Context) -> None:
    """One run with the settings of the run-config."""
    plain_errors()
    config = context.run_config
    seed = int(config["seed"])
    _, test = load(seed)

    def accuracy(server_round: int, arrays: ArrayRecord) -> MetricRecord:
        model = make_model(seed)
        model.load_state_dict(arrays.to_torch_state_dict())
        loss, share = evaluate(model, test)
        return MetricRecord({"accuracy": share, "loss": loss})

    GossipStrategy(str(config["graph"]), int(config["nodes"])).start(
        grid,
        ArrayRecord(make_model(seed).state_dict()),
        num_rounds=int(config["num-server-rounds"]),
        evaluate_fn=accuracy,
    )
