"""The digits client: it trains as ever, and mixes its model with its neighbours' by the run-config's rule."""

from flwr.app import Context, Message
from flwr.clientapp import ClientApp

import byzflow
from byzflow_flower import byzantine, mix
from byzflow_flower.digits import client_app as digits
from byzflow_flower.mods import ClientAppCallable, send

app = ClientApp()


def attack(message: Message, context: Context, call_next: ClientAppCallable) -> Message:
    """Send what the run-config's `attack` makes of one's own step."""
    spec = str(context.run_config["attack"])
    return call_next(message, context) if spec == "none" else send(spec)(message, context, call_next)


app.train(mods=[byzantine(attack, f="f")])(digits.train)


@app.query("mix")
def mix_neighbours(message: Message, context: Context) -> Message:
    """A rule that is always the same would be `gossip_client(app, "trimmed_mean", f=1)`."""
    return mix(message, byzflow.parse(str(context.run_config["aggregator"]), f=int(context.run_config["f"])))
