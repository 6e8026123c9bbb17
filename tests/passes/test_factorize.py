"""Low rank: planted ranks are found, the data's errors are least, budgets hold, and what cannot be done is said."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
import torch
from pydantic import ValidationError
from safetensors.torch import save_file
from torch import nn

from optkit.errors import PassError
from optkit.model.load_torch import load_module
from optkit.model.model import Model
from optkit.model.surgery import Factorize as Operation
from optkit.model.surgery import operate
from optkit.model.target import Target
from optkit.model.torch_folder import surgery_of
from optkit.passes._prune.factors import install, spectra
from optkit.passes._prune.matrices import find_layers
from optkit.passes._prune.rank import Curve, allocate, curve, lost_shares, within, worthwhile
from optkit.passes._prune.target import Goal
from optkit.passes._torch_cost import cost
from optkit.passes._train.training import Training
from optkit.passes.export_onnx import ExportOnnx
from optkit.passes.factorize import Factorize
from tests.command import SAMPLES
from tests.helpers import fresh_dir, normal, open_any, relative_error, run_onnx, run_pass

NET = """
from torch import nn

def build():
    return nn.Sequential(nn.Linear(64, 96), nn.ReLU(), nn.Linear(96, 80, bias=False), nn.Linear(80, 10))

def convolutions():
    return nn.Sequential(
        nn.Conv2d(4, 32, 3, stride=2, padding=1), nn.ReLU(),
        nn.Conv2d(32, 48, 3, padding="same", padding_mode="reflect"), nn.ReLU(),
        nn.Conv2d(48, 48, 3, groups=48), nn.Flatten(2), nn.Conv1d(48, 32, 3),
    )
"""
X = normal(256, 64)
DIGITS = "image=float32[batch,1,8,8]"


def made(name: str, shape: str, change=lambda module: None) -> Model:
    """A model of ``NET`` with random weights from a fixed seed, changed by ``change``."""
    folder = fresh_dir()
    (folder / "code.py").write_text(NET)
    space = {}
    exec(NET, space)
    torch.manual_seed(3)
    module = space[name]()
    with torch.no_grad():
        change(module)
    save_file(module.state_dict(), folder / "w.safetensors")
    return Model.open(folder / "w.safetensors", factory=f"{folder / 'code.py'}:{name}", signature=f"input={shape}")


def sample(name: str) -> Model:
    factory = f"{SAMPLES / 'models.py'}:{name}"
    return Model.open(SAMPLES / f"{name}.safetensors", factory=factory, signature=DIGITS)


def digits(split: str, name: str = "image") -> np.ndarray:
    with np.load(SAMPLES / "data" / f"digits_{split}.npz") as file:
        return file[name]


def low_rank(*shape: int, rank: int, seed: int = 0) -> torch.Tensor:
    return torch.from_numpy(normal(shape[0], rank, seed=seed) @ normal(rank, shape[1], seed=seed + 1)) / 20


def plant(module: nn.Module) -> None:
    module[0].weight.copy_(low_rank(96, 64, rank=16))
    module[2].weight.copy_(low_rank(80, 96, rank=8, seed=5))


# The layers


@pytest.mark.parametrize(
    ("layer", "shape"),
    [
        (nn.Linear(20, 30), (40, 20)),
        (nn.Linear(30, 20, bias=False), (5, 8, 30)),
        (nn.Conv2d(4, 24, 3, stride=2, padding=1), (6, 4, 9, 9)),
        (nn.Conv2d(4, 24, (3, 1), padding="same", padding_mode="circular", dilation=2), (6, 4, 9, 9)),
        (nn.Conv1d(6, 40, 5), (6, 6, 30)),
        (nn.Conv3d(2, 12, 2, bias=False), (4, 2, 4, 5, 6)),
    ],
)
def test_with_all_directions_two_layers_give_the_same_as_one(layer, shape):
    data = torch.from_numpy(normal(*shape)) + 1
    weight = layer.weight.reshape(len(layer.weight), -1)
    rank = min(weight.shape)
    found = spectra(nn.Sequential(layer), ["0"], [{"input": data}], 0)["0"]
    two = operate(nn.Sequential(layer), [Operation(module="0", rank=rank)])
    install(layer, two[0], found, rank)
    torch.testing.assert_close(two(data), layer(data), rtol=1e-4, atol=1e-4)
    assert found.lost[0] == 1
    assert found.lost[-1] < 1e-12


def test_the_narrow_outputs_are_even_as_quantization_likes_it():
    layer, data = nn.Linear(20, 30), torch.from_numpy(normal(400, 20) * np.logspace(0, -2, 20, dtype=np.float32))
    found = spectra(nn.Sequential(layer), ["0"], [{"input": data}], 0)["0"]
    two = operate(nn.Sequential(layer), [Operation(module="0", rank=8)])
    install(layer, two[0], found, 8)
    np.testing.assert_allclose(two[0][0](data).std(0).detach().numpy(), 1, atol=0.01)


def correlated(rows: int, seed: int) -> torch.Tensor:
    """Inputs that live near 10 of 48 directions, away from zero."""
    turn = np.linalg.qr(normal(48, 48, seed=8))[0]
    spread = np.where(np.arange(48) < 10, 1, 0.05).astype(np.float32)
    return torch.from_numpy((normal(rows, 48, seed=seed) * spread) @ turn + 2)


def test_on_correlated_data_the_error_is_far_below_that_of_the_plain_svd():
    torch.manual_seed(0)
    layer, seen, fresh = nn.Linear(48, 64), correlated(600, 1), correlated(200, 2)
    found = spectra(nn.Sequential(layer), ["0"], [{"input": part} for part in seen.split(50)], 0)["0"]
    two = operate(nn.Sequential(layer), [Operation(module="0", rank=12)])
    install(layer, two[0], found, 12)
    u, s, v = torch.linalg.svd(layer.weight)
    plain = fresh @ ((u[:, :12] * s[:12]) @ v[:12]).T + layer.bias
    with torch.no_grad():
        expected = layer(fresh)
        aware, blind = [float((each - expected).square().sum().sqrt()) for each in (two(fresh), plain)]
        spread = float((expected - expected.mean(0)).square().sum().sqrt())
    assert aware < 0.1 * blind
    assert aware / spread == pytest.approx(float(found.lost[12]) ** 0.5, rel=0.25)


def test_no_other_layer_of_that_rank_is_nearer_on_the_data():
    """The optimum by the book: W C^(1/2) cut off by its SVD, C the covariance of the inputs."""
    torch.manual_seed(0)
    layer, data = nn.Linear(48, 64), correlated(600, 1)
    found = spectra(nn.Sequential(layer), ["0"], [{"input": data}], 0)["0"]
    weight, centred = layer.weight.detach().double(), (data - data.mean(0)).double()
    root = torch.linalg.cholesky(centred.T @ centred / len(data))
    spectrum = torch.linalg.svdvals(weight @ root) ** 2
    for rank in (4, 8, 12, 24):
        least = float(spectrum[rank:].sum() / spectrum.sum())
        assert least * 0.999 <= found.lost[rank] <= least * 1.1


def test_directions_that_no_data_show_follow_the_weights():
    torch.manual_seed(0)
    layer = nn.Linear(16, 32)
    found = spectra(nn.Sequential(layer), ["0"], [{"input": torch.zeros(4, 16)}], 0)["0"]
    u, _, _ = torch.linalg.svd(layer.weight.detach().double())
    overlap = (u[:, :3].T @ found.directions[:, :3]).abs().diagonal()
    np.testing.assert_allclose(overlap.numpy(), 1, atol=1e-6)


class Odd(nn.Module):
    """Layers of which only some can be split."""

    def __init__(self) -> None:
        super().__init__()
        self.words, self.head = nn.Embedding(12, 16), nn.Linear(16, 12, bias=False)
        self.head.weight = self.words.weight
        self.encoder = nn.TransformerEncoderLayer(16, 2, 32, batch_first=True)
        self.twice = self.again = nn.Linear(16, 16)
        self.normed = nn.utils.parametrizations.weight_norm(nn.Linear(16, 16))
        self.read, self.plain, self.idle = nn.Linear(16, 16), nn.Linear(16, 16), nn.Linear(16, 16)

    def forward(self, ids: torch.Tensor) -> torch.Tensor:
        states = self.normed(self.again(self.twice(self.encoder(self.words(ids)))))
        return self.head(self.plain(nn.functional.linear(states, self.read.weight)))


def test_layers_that_are_more_than_called_stay():
    module = Odd().eval()
    before = {name: id(part) for name, part in module.named_modules()}
    ids = torch.arange(12).reshape(3, 4)
    layers, skipped, names = find_layers(module, ["nothing"], {"ids": ids}, 3)
    assert {name: id(part) for name, part in module.named_modules()} == before
    assert [(each.name, each.inputs, each.outputs, each.positions) for each in layers] == [("plain", 16, 16, 4)]
    reasons = dict(skipped)
    assert reasons["head"] == "its weight is also 'words.weight'"
    assert reasons["twice"] == "the same layer stands in 2 places"
    assert reasons["normed"] == "its weight is computed, as by a parametrization"
    assert reasons["read"] == "'weight' of it is read from outside, not its output alone"
    assert reasons["idle"] == "it is not called on the data"
    for name in ("encoder.self_attn.out_proj", "encoder.linear1", "encoder.linear2"):
        assert "read from outside" in reasons[name]
    assert set(names) == {*reasons, "plain"}


def test_what_is_not_finite_is_named():
    module = nn.Sequential(nn.Linear(4, 4))
    with pytest.raises(PassError, match="output of '0' becomes infinite or NaN"):
        spectra(module, ["0"], [{"input": torch.full((2, 4), torch.inf)}], 0)


# The ranks


def test_only_ranks_that_save_are_considered():
    assert worthwhile(384, 1536, 8) == tuple(range(240, 0, -8))
    assert worthwhile(20, 10, 8) == (5, 4, 3, 2, 1)
    assert worthwhile(1, 10, 8) == ()
    for rank in (worthwhile(384, 1536, 8)[0], worthwhile(20, 10, 8)[0]):
        assert rank * (384 + 1536) <= 0.8 * 384 * 1536
    assert lost_shares([3, 1, 0]).tolist() == [1, 0.25, 0, 0]


def random_curves(seed: int) -> dict[str, Curve]:
    random = np.random.default_rng(seed)
    sizes = [(16, 24), (24, 16), (32, 32)]
    spectrums = [np.sort(random.pareto(1, min(size)))[::-1] for size in sizes]
    return {
        str(at): curve(lost_shares(parts), *size, uses=at + 1.0, multiple=2)
        for at, (size, parts) in enumerate(zip(sizes, spectrums, strict=True))
    }


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize("share", [0.1, 0.4, 0.7])
def test_the_sum_of_errors_is_near_the_least_of_all_combinations(seed, share):
    curves = random_curves(seed)
    wanted = share * sum(each.saved[-1] for each in curves.values())
    options = [[(0.0, 0.0), *zip(each.saved, each.errors, strict=True)] for each in curves.values()]
    combined = (tuple(map(sum, zip(*each, strict=True))) for each in itertools.product(*options))
    least = min(error for saved, error in combined if saved >= wanted)
    ranks = allocate(curves, wanted)
    places = {name: curves[name].ranks.index(rank) for name, rank in ranks.items()}
    assert sum(curves[name].saved[at] for name, at in places.items()) >= wanted
    assert least - 1e-9 <= sum(curves[name].errors[at] for name, at in places.items()) <= 1.3 * least + 0.01


def test_ranks_that_lose_nothing_go_first_and_what_is_too_much_is_given_back():
    free = Curve((8, 4), (0.0, 0.0), (50, 80))
    dear = Curve((8, 4), (0.5, 0.9), (50, 80))
    assert allocate({"dear": dear, "free": free}, 60) == {"free": 4}
    assert allocate({"dear": dear, "free": free}, 40) == {"free": 8}
    assert allocate({"dear": dear, "free": free}, 100) == {"free": 8, "dear": 8}
    assert allocate({"dear": dear, "free": free}, 130) == {"free": 4, "dear": 8}
    assert allocate({"dear": dear, "free": free}, 160) == {"free": 4, "dear": 4}
    assert allocate({"dear": dear, "free": free}, 161) is None


def test_by_error_each_layer_gets_its_lowest_rank():
    curves = {"a": Curve((16, 8), (0.0001, 0.01), (1, 2)), "b": Curve((16, 8), (0.04, 0.09), (1, 2))}
    assert within(curves, 0.1) == {"a": 8}
    assert within(curves, 0.2) == {"a": 8, "b": 16}


# The pass


def test_planted_ranks_are_found_and_reproduced():
    model = made("build", "float32[batch,64]", plant)
    outcome = run_pass(Factorize(error=0.001), model, data={"calibration": {"input": X}})
    assert outcome.changes == [
        ("0", outcome.changes[0][1]),
        ("2", outcome.changes[1][1]),
    ]
    assert [what.split(",")[0] for _, what in outcome.changes] == ["64x96 rank 16", "96x80 rank 8"]
    module, fresh = load_module(outcome.model), torch.from_numpy(normal(16, 64, seed=9))
    assert [tuple(each.shape) for each in module.parameters()] == [
        *((16, 64), (96, 16), (96,)),
        *((8, 96), (80, 8)),
        *((10, 80), (10,)),
    ]
    with torch.no_grad():
        assert relative_error(module(fresh).numpy(), load_module(model)(fresh).numpy()) < 1e-5
    before, after = 96 * 64 + 80 * 96 + 810 + 96, 16 * 160 + 8 * 176 + 810 + 96
    assert outcome.notes[0].startswith(f"parameters {before / 1000:.3g} k -> {after / 1000:.3g} k")
    assert surgery_of(outcome.model) == [Operation(module="0", rank=16), Operation(module="2", rank=8)]


@pytest.mark.parametrize("what", ["macs", "parameters"])
@pytest.mark.parametrize("share", [0.8, 0.5, 0.35])
@pytest.mark.parametrize("name", ["digits_cnn", "digits_mlp"])
def test_budgets_hold_and_the_digits_are_still_read(name, what, share):
    model, images = sample(name), torch.from_numpy(digits("search"))
    data = {"calibration": {"image": digits("calibration")}}
    outcome = run_pass(Factorize(target=Goal(**{what: share})), model, data=data)
    whole, module = load_module(model), load_module(outcome.model)
    spent = [getattr(cost(each, {"image": images[:8]}, 8), what) for each in (whole, module)]
    assert 0.2 * share < spent[1] / spent[0] <= share
    with torch.no_grad():
        read = [each(images)["logits"].argmax(1).numpy() for each in (whole, module)]
    right = [(each == digits("search", "labels")).mean() for each in read]
    assert right[1] >= right[0] - 0.03


def test_convolutions_of_all_sorts_and_the_exported_graph():
    model = made("convolutions", "float32[batch,4,12,12]")
    data = {"calibration": {"input": normal(32, 4, 12, 12)}}
    outcome = run_pass(Factorize(target=Goal(parameters=0.7)), model, data=data)
    assert ("4", "a convolution of 48 groups") in outcome.skipped
    fresh = normal(4, 4, 12, 12, seed=7)
    with torch.no_grad():
        live = load_module(outcome.model)(torch.from_numpy(fresh)).numpy()
        whole = load_module(model)(torch.from_numpy(fresh)).numpy()
    assert 1e-4 < relative_error(live, whole) < 0.8
    graph = run_pass(ExportOnnx(), outcome.model, data={"sample": {"input": fresh}}).model
    found = next(iter(run_onnx(graph, {"input": fresh}).values()))
    assert relative_error(found, live) < 1e-5
    assert graph.size_bytes < 0.8 * sum(4 * each.numel() for each in load_module(model).parameters()) + 4000


def test_gpt2_keeps_its_answers_where_its_layers_have_low_rank(tmp_path):
    import transformers

    sizes = {"n_layer": 1, "n_head": 2, "n_embd": 32, "vocab_size": 40, "n_positions": 16}
    torch.manual_seed(0)
    module = transformers.GPT2LMHeadModel(transformers.GPT2Config(**sizes, bos_token_id=0, eos_token_id=0))
    with torch.no_grad():
        module.transformer.h[0].mlp.c_fc.weight.copy_(low_rank(32, 128, rank=8))
    module.save_pretrained(tmp_path / "hf")
    ids = np.random.default_rng(0).integers(0, 40, (24, 12))
    arrays = {"input_ids": ids, "attention_mask": np.ones_like(ids)}
    model = Model.open(tmp_path / "hf")
    outcome = run_pass(Factorize(error=0.001), model, data={"calibration": arrays})
    assert [name for name, _ in outcome.changes] == ["transformer.h.0.mlp.c_fc"]
    assert dict(outcome.skipped)["lm_head"] == "its weight is also 'transformer.wte.weight'"
    tensor = torch.from_numpy(ids)
    with torch.no_grad():
        live, whole = load_module(outcome.model)(tensor).logits, load_module(model)(tensor).logits
    assert relative_error(live.numpy(), whole.numpy()) < 1e-5


def test_seldom_data_are_told():
    model = made("build", "float32[batch,64]", plant)
    outcome = run_pass(Factorize(error=0.01), model, data={"calibration": {"input": X[:10]}})
    assert any(note.startswith("only 10 rows of calibration data") for note in outcome.notes)


def test_trained_afterwards_it_is_better_and_has_the_same_shapes():
    assert Factorize(fine_tune=True).reads() == ("calibration", "train", "search")
    model, data = sample("digits_mlp"), {"calibration": {"image": digits("calibration")}}
    data |= {split: {"image": digits(split)} for split in ("train", "search")}
    options = {"target": Goal(macs=0.06), "multiple": 2}
    plain = run_pass(Factorize(**options), model, data=data).model
    training = Training(steps=80, looks=2)
    tuned = run_pass(Factorize(**options, fine_tune=True), model, data=data, training=training)
    images = torch.from_numpy(digits("search"))
    with torch.no_grad():
        whole, *cut = [load_module(each)(images)["logits"].argmax(1) for each in (model, plain, tuned.model)]
    agreement = [float((each == whole).float().mean()) for each in cut]
    assert agreement[1] > agreement[0] + 0.1
    assert surgery_of(tuned.model) == surgery_of(plain)
    assert any(note.startswith("trained 80 steps") for note in tuned.notes)


# What is refused


def test_a_target_out_of_reach_names_the_best():
    model = made("build", "float32[batch,64]")
    with pytest.raises(PassError, match=r"target of 0\.01 of the MACs cannot be reached: .* 0\.19 is left"):
        run_pass(Factorize(target=Goal(macs=0.01)), model, data={"calibration": {"input": X}})


def test_an_error_that_no_layer_keeps_to_names_the_least():
    def even(module: nn.Module) -> None:
        for part in module:
            if isinstance(part, nn.Linear):
                nn.init.orthogonal_(part.weight)

    model = made("build", "float32[batch,64]", even)
    with pytest.raises(PassError, match=r"error of at most 0\.001: the least is 0\.\d+, of '\d' with rank 3?\d"):
        run_pass(Factorize(error=0.001), model, data={"calibration": {"input": X}})


def test_nothing_to_factorize_says_why():
    model = made("build", "float32[batch,64]")
    with pytest.raises(PassError, match="of 3 layers none can be; 3 were looked at and left: excluded"):
        run_pass(Factorize(exclude=(r"\d",)), model, data={"calibration": {"input": X}})


@pytest.mark.parametrize(
    ("options", "why"),
    [
        ({"target": {"macs": 0.5}, "error": 0.1}, "exclude each other"),
        ({"target": {"latency": 0.5}}, "chosen by counting"),
        ({"target": {"macs": 1.5}}, "less than 1"),
        ({"error": 0}, "greater than 0"),
    ],
)
def test_options_that_make_no_sense(options, why):
    with pytest.raises(ValidationError, match=why):
        Factorize(**options)


def test_exports_cannot_be_changed():
    assert "TorchScript cannot be changed" in Factorize().applies(open_any(SAMPLES / "digits_mlp.ts.pt"), Target())
    assert Factorize().applies(sample("digits_mlp"), Target()) == ""


SPECIAL = """
from torch import nn

class Scaled(nn.Linear):
    def forward(self, x):
        return super().forward(x).tanh() * 3

class Asking(nn.Module):
    def __init__(self):
        super().__init__()
        self.layers = nn.ModuleList([nn.Linear(32, 32), nn.Linear(32, 32)])

    def forward(self, input):
        for layer in self.layers:
            input = layer(input)
            if isinstance(layer, nn.Linear):
                input = input.relu()
        return input

def scaled():
    return nn.Sequential(Scaled(32, 32), nn.Linear(32, 32))
"""


def special(name: str) -> Model:
    folder = fresh_dir()
    (folder / "code.py").write_text(SPECIAL)
    space = {}
    exec(SPECIAL, space)
    torch.manual_seed(0)
    save_file(space[name]().state_dict(), folder / "w.safetensors")
    factory = f"{folder / 'code.py'}:{name}"
    return Model.open(folder / "w.safetensors", factory=factory, signature="input=float32[batch,32]")


def test_a_layer_that_computes_something_of_its_own_stays():
    outcome = run_pass(
        Factorize(target=Goal(macs=0.9)), special("scaled"), data={"calibration": {"input": normal(64, 32)}}
    )
    assert [name for name, _ in outcome.changes] == ["1"]
    assert ("0", "its class Scaled or its hooks compute something of their own") in outcome.skipped


def test_a_forward_that_asks_for_classes_is_refused():
    with pytest.raises(PassError, match=r"looks at the classes of its layers.*'output_0' is off by"):
        run_pass(Factorize(target=Goal(macs=0.9)), special("Asking"), data={"calibration": {"input": normal(64, 32)}})
