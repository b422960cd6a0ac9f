"""The client side: Lightning trains and validates what arrives."""

from __future__ import annotations

from flwr.app import Context

from byzflow_flower.mods import chosen
from byzflow_lightning import client_app
from digits_lightning.task import Digits, Shard, flip_labels


def module(context: Context) -> Digits:
    return Digits(lr=float(context.run_config["learning-rate"]))


def datamodule(context: Context) -> Shard:
    node, run = context.node_config, context.run_config
    return Shard(int(node["partition-id"]), int(node["num-partitions"]), int(run["batch-size"]))


# Partitions 0 to f - 1 tell the lie that the run-config names under `attack`.
app = client_app(
    module=module,
    datamodule=datamodule,
    trainer=lambda context: {"max_epochs": int(context.run_config["local-epochs"])},
    attack=chosen("attack"),
    f="f",
    poison=flip_labels,
)
