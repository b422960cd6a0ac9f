"""Clients that lie: Flower mods, to put into `ClientApp(mods=[...])` or `@app.train(mods=[...])`.

    ClientApp(mods=[byzantine(sign_flip, f=3)])              # partitions 0, 1 and 2 send their update's negative
    ClientApp(mods=[byzantine(chosen("attack"), f="f")])     # which attack, and f, from the run-config

    who.py         byzantine, reveal_partition: which clients lie, and who they are
    lying.py       send: any attack that needs the own update alone; inflate_weight, free_rider
    poisoning.py   label_flip, backdoor: wrong data, for which the train function asks
    broken.py      malformed: replies that are not what was asked for
    absent.py      slow, silent, crash: replies that come late or never

Of several mods, the first is the outermost: it sees the message first and the reply last. All of these act on training
only. A mod knows its own client's data and reply; attacks that need to know the others' are for `AttackedGrid`.
"""

from __future__ import annotations

from collections.abc import Mapping

from flwr.app import Context, Message

from byzflow.errors import SpecError
from byzflow.spec import parse_attack
from byzflow_flower.mods.absent import crash, silent, slow
from byzflow_flower.mods.broken import MALFORMED, malformed, wrong_keys
from byzflow_flower.mods.lying import free_rider, gaussian, inflate_weight, nan, send, sends_alone, sign_flip
from byzflow_flower.mods.poisoning import backdoor, label_flip, wants_backdoor, wants_label_flip
from byzflow_flower.mods.who import ClientAppCallable, Mod, byzantine, partition, reveal_partition

__all__ = [
    "MALFORMED",
    "MODS",
    "ClientAppCallable",
    "Mod",
    "backdoor",
    "byzantine",
    "chosen",
    "crash",
    "free_rider",
    "gaussian",
    "inflate_weight",
    "label_flip",
    "malformed",
    "nan",
    "partition",
    "reveal_partition",
    "send",
    "sends_alone",
    "sign_flip",
    "silent",
    "slow",
    "wants_backdoor",
    "wants_label_flip",
    "wrong_keys",
]

MODS: Mapping[str, Mod] = {
    "sign_flip": sign_flip,
    "gaussian": gaussian,
    "nan": nan,
    "label_flip": label_flip,
    "backdoor": backdoor,
    "free_rider": free_rider,
    "inflate_weight": inflate_weight,
    "wrong_keys": wrong_keys,
    "silent": silent,
    "crash": crash,
}


def chosen(key: str, mods: Mapping[str, Mod] | None = None) -> Mod:
    """The mod that the run-config names under `key`; another name, such as an omniscient attack's, does nothing.

    `mods` are those to choose from. By default all of MODS and MALFORMED, and the spec of any installed attack that
    needs its own update alone, such as "ipm(tau=3)". In a name, `-` reads as `_`.
    """

    def choosing(message: Message, context: Context, call_next: ClientAppCallable) -> Message:
        name = str(context.run_config[key])
        known = {**MODS, **MALFORMED} if mods is None else mods
        mod = known.get(name.replace("-", "_"))
        if mod is None and mods is None and _is_attack_of_one(name):
            mod = send(name)
        return mod(message, context, call_next) if mod else call_next(message, context)

    return choosing


def _is_attack_of_one(spec: str) -> bool:
    try:
        return sends_alone(parse_attack(spec))
    except SpecError:
        return False
