"""Red's flat configuration keys, said in byzflow's; what has no meaning here is an error or a note, never silence."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from byzflow.errors import SpecError, did_you_mean

MARKS = ("federated_learning_schema", "federated_learning_topology", "number_of_clients", "federated_learning_rounds")
PLAIN = {
    "federated_learning_schema": "federation.schema",
    "federated_learning_rounds": "federation.rounds",
    "random_seed": "federation.seed",
    "client_sampling_rate": "federation.fraction",
    "number_of_clients": "nodes.count",
    "client_role": "nodes.roles",
    "learning_rate": "training.lr",
    "number_of_epochs": "training.local_epochs",
    "train_batch_size": "training.batch_size",
    "weight_decay": "training.weight_decay",
    "clustering_period": "clusters.every",
}
"""Keys that mean the same."""
NAMES = {
    "dataset_type": ("data.name", {"fmnist": "fashion_mnist", "cifar-10": "cifar10"}),
    "model_type": ("model.name", {}),
}
"""Keys whose values have other names here."""
UNUSED = {
    "device": "nodes train on the CPU of this process",
    "gpu_index": "nodes train on the CPU of this process",
    "federation_id": "a run has no id here",
    "test_batch_size": "it does not change what is measured",
    "mean_accuracy_to_csv": "set metrics.file to a .csv",
    "stop_avg_accuracy": "a run makes all its rounds",
    "fed_avg": "aggregation_strategy says it",
}
"""Keys that change nothing here, and why."""


def is_red(data: Mapping[str, Any]) -> bool:
    """If a file has Red's keys at its top."""
    return any(mark in data for mark in MARKS)


def translated(data: Mapping[str, Any], source: str, note: Callable[[str], None]) -> dict[str, Any]:
    """The same federation in byzflow's keys. Notes keys that change nothing; SpecError for others."""
    found: dict[str, Any] = {"training": {"momentum": 0.0}, "defence": {"rule": "mean", "f": 0}}
    for key, value in data.items():
        if value is None:
            continue
        if key in PLAIN:
            _put(found, PLAIN[key], value)
        elif key in NAMES:
            target, names = NAMES[key]
            _put(found, target, names.get(str(value).lower(), str(value).lower()))
        elif key in SPECIAL:
            try:
                SPECIAL[key](found, value, data)
            except SpecError as error:
                raise SpecError(f"{source}: {key}: {error}") from None
        elif key in UNUSED:
            note(f"{source}: {key} is not used: {UNUSED[key]}")
        else:
            known = [*PLAIN, *NAMES, *SPECIAL, *UNUSED]
            raise SpecError(f"{source}: {key}: no such key of Red's is understood; {did_you_mean(key, known)}")
    found.setdefault("federation", {}).setdefault("exchange", "updates" if _is_star(data) else "")
    if str(data.get("client_role", "")).lower() in ("train", "train-aggregate"):
        note(f"{source}: client_role is train: nobody evaluates, and no accuracy is shown; write train-eval")
    return found


def _is_star(data: Mapping[str, Any]) -> bool:
    schema = str(data.get("federated_learning_schema", "star")).lower()
    default = "star" if schema.startswith(("star", "traditional")) else "ring"
    return str(data.get("federated_learning_topology", default)).lower() == "star"


def _topology(found: dict[str, Any], value: Any, data: Mapping[str, Any]) -> None:
    name = str(value).lower().replace("-", "_")
    if name in ("k_connect", "k_regular"):
        name = f"k_regular:{data.get('client_k_neighbors') or 2}"
    if name == "custom":
        raise SpecError("a custom graph is a file of edges or a name here: set federation.topology")
    _put(found, "federation.topology", name)


def _distribution(found: dict[str, Any], value: Any, data: Mapping[str, Any]) -> None:
    name = str(value).lower()
    if name in ("iid", "homo"):
        _put(found, "data.partition", "iid")
    elif name == "iid-diff-quantity":
        _put(found, "data.partition", "quantity_skew")
    elif name in ("dir", "dirichlet"):
        _put(found, "data.partition", "dirichlet")
        _put(found, "data.alpha", data.get("dirichlet_beta") or 0.1)
    elif name.isdigit() and int(name) in range(10, 100, 10):  # per cent of ten labels
        _put(found, "data.partition", "label_skew")
        _put(found, "data.per_node", int(name) // 10)
    else:
        raise SpecError(f"got {value!r}; known: iid, iid-diff-quantity, dir, and 10 to 90")


def _strategy(found: dict[str, Any], value: Any, data: Mapping[str, Any]) -> None:
    name = str(value).lower().replace("_", "").replace("-", "")
    if name not in ("fedavg", "fedprox"):
        raise SpecError(f"got {value!r}; {did_you_mean(str(value), ['FedAvg', 'FedProx'])}")
    if name == "fedprox":
        _put(found, "training.prox_mu", 0.01)


def _scaling(found: dict[str, Any], value: Any, data: Mapping[str, Any]) -> None:
    _put(found, "defence.sample_weights", bool(value))


def _optimizer(found: dict[str, Any], value: Any, data: Mapping[str, Any]) -> None:
    if str(value).lower() != "sgd":
        raise SpecError(f"nodes take steps of SGD with momentum, got {value!r}: set it to sgd")


def _loss(found: dict[str, Any], value: Any, data: Mapping[str, Any]) -> None:
    if str(value).lower().replace("_", "").replace("-", "") not in ("crossentropy", "crossentropyloss", "ce"):
        raise SpecError(f"nodes minimise the cross entropy, got {value!r}")


def _only_with(found: dict[str, Any], value: Any, data: Mapping[str, Any]) -> None:
    """A key that is read with another one."""


SPECIAL: dict[str, Callable[[dict[str, Any], Any, Mapping[str, Any]], None]] = {
    "federated_learning_topology": _topology,
    "client_k_neighbors": _only_with,
    "data_distribution_kind": _distribution,
    "dirichlet_beta": _only_with,
    "aggregation_strategy": _strategy,
    "aggregation_sample_scaling": _scaling,
    "optimizer": _optimizer,
    "loss_function": _loss,
}


def _put(found: dict[str, Any], key: str, value: Any) -> None:
    section, name = key.split(".")
    found.setdefault(section, {})[name] = value
