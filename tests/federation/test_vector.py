"""A model as one vector: views, policies for buffers, digests and schemas."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import Tensor, nn

from byzflow.errors import ModelError, NonFiniteRows, SpecError
from byzflow.federation.models import MODELS, make_model
from byzflow.federation.schema import Schema, schema_hash
from byzflow.federation.vector import ModelVector


def normed() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4), nn.ReLU(), nn.Linear(4, 2))


def test_the_module_computes_what_it_did_and_the_vector_is_it() -> None:
    module = normed().eval()
    x = torch.randn(5, 3)
    before = module(x)
    model = ModelVector(module)
    assert torch.equal(module(x), before)
    flat = torch.cat([each.detach().flatten() for each in module.parameters()])
    assert len(model) == 34
    assert torch.equal(model.get(), flat)
    assert model.get().is_contiguous()
    assert model.get().data_ptr() == model.get().data_ptr() == module[0].weight.data_ptr()
    model.set(2 * flat)
    assert torch.equal(module[3].bias, flat[-2:] * 2)
    module[0].weight.data.zero_()  # what an optimiser does
    assert not model.get()[:12].any()


def test_state_dicts_and_copies_go_on_to_work() -> None:
    module = normed()
    model = ModelVector(module, buffers="mix")
    saved = copy.deepcopy(module.state_dict())
    model.set(torch.zeros(len(model)))
    module.load_state_dict(saved)
    assert model.get().any()
    twin = copy.deepcopy(module)
    model.set(torch.zeros(len(model)))
    assert twin[0].weight.any()


def test_mixed_buffers_are_the_end_of_the_vector_and_follow_training() -> None:
    module = normed()
    model = ModelVector(module, buffers="mix")
    assert len(model) == 34 + 8
    assert model.trainable.tolist() == [True] * 34 + [False] * 8
    module.train()(torch.randn(6, 3) + 5)
    assert torch.equal(model.get()[34:38], module[1].running_mean)
    assert module[1].running_mean.any()
    assert model.local_buffers().keys() == {"1.num_batches_tracked"}
    local = ModelVector(normed())
    assert local.local_buffers().keys() == {"1.running_mean", "1.running_var", "1.num_batches_tracked"}


@pytest.mark.parametrize(("policy", "expected"), [("local", 7), ("max", 9), ("median", 3)])
def test_counters_follow_their_policy(policy: str, expected: int) -> None:
    module = normed()
    module[1].num_batches_tracked.fill_(7)
    model = ModelVector(module, integers=policy)  # type: ignore[arg-type]
    sent = [{"1.num_batches_tracked": torch.tensor(n)} for n in (9, 2, 3, 8)]
    model.merge_integers(sent)
    assert int(module[1].num_batches_tracked) == expected
    assert model.integer_buffers().keys() == (set() if policy == "local" else {"1.num_batches_tracked"})


@pytest.mark.parametrize(
    "sent", [{}, {"1.num_batches_tracked": torch.tensor(1.0)}, {"1.num_batches_tracked": torch.ones(3).long()}]
)
def test_counters_that_do_not_fit_are_refused(sent: dict[str, Tensor]) -> None:
    model = ModelVector(normed(), integers="median")
    with pytest.raises(ModelError, match=r"1 of 2 nodes sent no 1\.num_batches_tracked that fits"):
        model.merge_integers([sent, model.integer_buffers()])


def test_frozen_and_shared_parameters_are_there_once() -> None:
    module = nn.Sequential(nn.Linear(3, 3), nn.Linear(3, 3))
    module[1].weight = module[0].weight
    module[0].bias.requires_grad_(False)
    model = ModelVector(module)
    assert len(model) == 9 + 3 + 3
    assert model.trainable.tolist() == [True] * 9 + [False] * 3 + [True] * 3
    model.set(torch.arange(15.0))
    assert torch.equal(module[1].weight, module[0].weight)


@pytest.mark.parametrize(
    "vector", [torch.zeros(33), torch.zeros(1), torch.zeros(34, 1), torch.zeros(34).long(), torch.tensor(1.0)]
)
def test_vectors_that_do_not_fit_are_refused(vector: Tensor) -> None:
    model = ModelVector(normed())
    before = model.digest()
    with pytest.raises(ModelError, match="vector of 34 floating numbers"):
        model.set(vector)
    assert model.digest() == before


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), 1e300])
def test_numbers_that_are_not_finite_in_the_model_are_refused_on_demand(bad: float) -> None:
    model = ModelVector(normed())
    vector = torch.ones(34, dtype=torch.float64)
    vector[3] = bad
    before = model.digest()
    with pytest.raises(NonFiniteRows, match="1 of the vector's 34 numbers"):
        model.set(vector, finite=True)
    assert model.digest() == before
    model.set(torch.full((34,), 1e30), finite=True)


@pytest.mark.parametrize("change", ["to", "half", "replace", "buffer"])
def test_a_model_whose_arrays_are_no_longer_the_vector_says_so(change: str) -> None:
    module = normed()
    model = ModelVector(module, buffers="mix")
    if change == "to":
        module.to(torch.float64)
    elif change == "half":
        module.half()
    elif change == "replace":
        module[3].weight = nn.Parameter(torch.zeros(2, 4))
    else:
        module[1].running_mean = torch.zeros(4)
    for use in (model.get, model.digest, lambda: model.set(torch.zeros(42))):
        with pytest.raises(ModelError, match=r"is no longer part of the model's vector: change dtype or device"):
            use()


def test_models_that_are_no_vector_are_refused() -> None:
    with pytest.raises(ModelError, match="ReLU has no parameters"):
        ModelVector(nn.ReLU())
    with pytest.raises(ModelError, match="no parameters"):
        ModelVector(nn.ParameterList([torch.empty(0)]))
    with pytest.raises(ModelError, match=r"dtypes, the model has torch.float32, torch.float64"):
        ModelVector(nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 2).double()))
    with pytest.raises(ModelError, match="lazy"):
        ModelVector(nn.LazyLinear(3))
    with pytest.raises(ModelError, match=r"complex64.*real arrays"):
        ModelVector(nn.Linear(2, 2, dtype=torch.complex64))
    with pytest.raises(SpecError, match="'local' or 'mix', got 'average'"):
        ModelVector(normed(), buffers="average")  # type: ignore[arg-type]
    with pytest.raises(SpecError, match="'max' or 'median'"):
        ModelVector(normed(), integers="mean")  # type: ignore[arg-type]


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16, torch.float16])
def test_other_dtypes_stay(dtype: torch.dtype) -> None:
    model = ModelVector(normed().to(dtype))
    assert model.get().dtype == dtype
    model.set(torch.ones(34))
    assert model.get().eq(1).all()
    assert len(model.digest()) == 64


def test_digests_tell_models_apart() -> None:
    one, two = ModelVector(normed()), ModelVector(normed())
    assert one.digest() == two.digest()
    one.module[1].running_mean.add_(1)
    assert one.digest() == two.digest()  # buffers stay local
    assert one.digest(whole=True) != two.digest(whole=True)
    changed = two.get().clone()
    changed[20] = changed[20].nextafter(torch.tensor(9.0))
    two.set(changed)
    assert one.digest() != two.digest()
    assert ModelVector(nn.Linear(2, 3, bias=False)).digest() != ModelVector(nn.Linear(3, 2, bias=False)).digest()


def test_schemas_are_of_names_shapes_and_dtypes() -> None:
    schema = Schema.of(normed())
    assert [array.name for array in schema.of_kind("parameter")][:3] == ["0.weight", "0.bias", "1.weight"]
    assert [array.name for array in schema.of_kind("buffer")] == ["1.running_mean", "1.running_var"]
    assert [array.name for array in schema.of_kind("integer")] == ["1.num_batches_tracked"]
    hashes = [schema_hash(m) for m in (normed(), normed().double(), normed()[:2], nn.Linear(2, 3), nn.Linear(3, 2))]
    assert len(set(hashes)) == 5
    changed = normed()
    changed[0].weight.data.zero_()
    assert schema_hash(changed) == hashes[0]


@pytest.mark.parametrize("name", MODELS)
def test_models_by_name_depend_on_the_seed_alone(name: str) -> None:
    state = torch.get_rng_state()
    one, two = make_model(name, (1, 8, 8), 10, seed=4), make_model(name, (1, 8, 8), 10, seed=4)
    assert torch.equal(torch.get_rng_state(), state)
    assert ModelVector(one).digest() == ModelVector(two).digest()
    assert one(torch.zeros(5, 1, 8, 8)).shape == (5, 10)
    if name != "softmax":
        assert ModelVector(make_model(name, (1, 8, 8), 10, seed=5)).digest() != ModelVector(one).digest()


def test_models_that_cannot_be() -> None:
    with pytest.raises(SpecError, match="did you mean softmax"):
        make_model("softmx", (3,), 2)
    with pytest.raises(ModelError, match="cnn needs images"):
        make_model("cnn", (64,), 10)
    with pytest.raises(ModelError, match="one class at least"):
        make_model("mlp", (64,), 0)
