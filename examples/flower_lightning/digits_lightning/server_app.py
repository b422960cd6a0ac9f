"""The server side: FedAvg made robust; the clients' median accuracy after each round."""

from __future__ import annotations

from flwr.app import ArrayRecord, Context
from flwr.serverapp import Grid, ServerApp
from flwr.serverapp.strategy import FedAvg

from byzflow_flower import Robust
from digits_lightning.task import Digits

app = ServerApp()


@app.main()
def main(grid: Grid, context: Context) -> None:
    run = context.run_config
    strategy = Robust(FedAvg(), str(run["aggregator"]), f=int(run["f"]))
    initial = ArrayRecord(Digits(lr=float(run["learning-rate"])).state_dict())
    strategy.start(grid=grid, initial_arrays=initial, num_rounds=int(run["num-server-rounds"]))
