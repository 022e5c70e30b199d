from __future__ import annotations

import gc
import weakref
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial

import pytest
import torch
from torch import Tensor, nn
from transformers import AutoConfig

from llamaconv.errors import UnsupportedError
from llamaconv.model.skeleton import Skeleton, put
from llamaconv.model.staged import Stage, find_stages, forward, run_staged
from llamaconv.model.stand_ins import BlockInputs
from llamaconv.model.workers import Workers
from tests.conftest import Checkpoint
from tests.models import load_weights

QKV, OUT = ("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj"), ("self_attn.o_proj",)
GATE_UP, DOWN = ("mlp.gate_proj", "mlp.up_proj"), ("mlp.down_proj",)
STAGES = (Stage(QKV, 96), Stage(OUT, 192), Stage(GATE_UP, 96), Stage(DOWN, 160))
LAYERS = [name for stage in STAGES for name in stage.layers]
LENGTHS = (40, 17, 40, 5, 40)


@dataclass
class Case:
    """A decoder block with its weights, and what goes into it."""

    block: nn.Module
    inputs: list[BlockInputs]
    stages: Sequence[Stage] = STAGES

    def hidden(self) -> list[Tensor]:
        """[1, L, 96] for each length, always the same."""
        generator = torch.Generator().manual_seed(1)
        return [torch.randn((1, length, 96), generator=generator) for length in LENGTHS]

    def layer(self, name: str) -> nn.Linear:
        layer = self.block.get_submodule(name)
        assert isinstance(layer, nn.Linear)
        return layer


@pytest.fixture
def case(checkpoint: Checkpoint) -> Case:
    return case_of(checkpoint, "mistral")


def case_of(checkpoint: Checkpoint, family: str) -> Case:
    directory = checkpoint(family)
    skeleton, weights = skeleton_of(checkpoint, family), load_weights(directory)
    recorded = {length: skeleton.record(length)[1] for length in LENGTHS}
    for name in skeleton.block_parameters(1):
        put(skeleton.model, name, weights[name])
    return Case(skeleton.blocks[1], [recorded[length] for length in LENGTHS])


def skeleton_of(checkpoint: Checkpoint, family: str) -> Skeleton:
    return Skeleton.build(AutoConfig.from_pretrained(checkpoint(family)).to_dict(), torch.float32)


def coarse(layer: nn.Linear) -> None:
    """Stands for quantization: few values, far from the old ones."""
    layer.weight.copy_((layer.weight * 4).round() / 4)


def staged(
    case: Case, workers: int, held: int, after: Callable[[int], None] = lambda stage: None
) -> tuple[list[Tensor], list[Tensor]]:
    """Run with every stage made coarse: the outputs, and each stage's inputs in the order in which they came."""
    hidden, collected = case.hidden(), [list[Tensor]() for _ in case.stages]

    def quantize(stage: int) -> None:
        for name in case.stages[stage].layers:
            coarse(case.layer(name))
        after(stage)

    with Workers(workers) as crew:
        run_staged(
            case.block,
            case.stages,
            hidden,
            case.inputs,
            crew,
            lambda stage, inputs: collected[stage].extend(x.clone() for x in inputs),
            quantize,
            held,
        )
    return hidden, [torch.cat(inputs) for inputs in collected]


def stage_by_stage(case: Case) -> tuple[list[Tensor], list[Tensor]]:
    """The same the plain way: for each stage a whole forward of every sample that only looks at its inputs."""
    collected = []
    with torch.inference_mode(), Workers(1):
        for stage in case.stages:
            seen: list[Tensor] = []
            hook = case.layer(stage.layers[0]).register_forward_pre_hook(
                lambda _, arguments, seen=seen: seen.append(arguments[0][0].clone())
            )
            for states, inputs in zip(case.hidden(), case.inputs, strict=True):
                forward(case.block, states, inputs)
            hook.remove()
            collected.append(torch.cat(seen))
            for name in stage.layers:
                coarse(case.layer(name))
        outputs = [forward(case.block, *pair) for pair in zip(case.hidden(), case.inputs, strict=True)]
    return outputs, collected


@pytest.mark.parametrize("family", ["llama", "mistral", "qwen2", "qwen3", "gemma2"])
def test_layers_that_share_an_input_are_one_stage(checkpoint: Checkpoint, family: str) -> None:
    """Queries, keys and values; the attention's output; gate and up; down: in the order in which they run."""
    skeleton = skeleton_of(checkpoint, family)
    for block, inputs in zip(skeleton.blocks, skeleton.record(8), strict=True):
        found = find_stages(block, torch.empty((1, 8, 96), device="meta"), inputs, sorted(LAYERS))
        heads = 96 if family == "qwen2" else 192
        assert found == (STAGES[0], Stage(OUT, heads), *STAGES[2:])


def test_layers_left_out_are_in_no_stage(checkpoint: Checkpoint) -> None:
    """A stage has only what was asked for, and one with nothing of it does not exist."""
    skeleton = skeleton_of(checkpoint, "llama")
    names = ["mlp.down_proj", "self_attn.k_proj", "self_attn.o_proj"]
    found = find_stages(skeleton.blocks[0], torch.empty((1, 8, 96), device="meta"), skeleton.record(8)[0], names)
    assert found == (Stage((names[1],), 96), Stage((names[2],), 192), Stage((names[0],), 160))
    nothing = find_stages(skeleton.blocks[0], torch.empty((1, 8, 96), device="meta"), skeleton.record(8)[0], [])
    assert nothing == ()


class Branches(nn.Module):
    """Two branches from one input, the second entered when the first is done; one layer runs twice, one never."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Linear(96, 64), nn.Linear(96, 32)
        self.behind, self.twice, self.never = nn.Linear(64, 32), nn.Linear(32, 96), nn.Linear(32, 96)

    def forward(self, hidden: Tensor) -> tuple[Tensor, None]:
        return hidden + self.twice(self.behind(self.first(hidden))) + self.twice(self.second(hidden)), None


def test_a_layer_that_does_not_run_exactly_once_is_refused() -> None:
    """All of them are named; without them the block is good."""
    block, hidden = Branches().to("meta"), torch.empty((1, 4, 96), device="meta")
    with pytest.raises(UnsupportedError) as caught:
        find_stages(block, hidden, BlockInputs((), {}), ["twice", "first", "never"])
    assert str(caught.value) == "these layers do not run exactly once per forward: never, twice"
    assert caught.value.hint == "Leave them out with --skip."
    found = find_stages(block, hidden, BlockInputs((), {}), ["first", "second", "behind"])
    assert found == (Stage(("first", "second"), 96), Stage(("behind",), 64))


@pytest.mark.parametrize("workers", [1, 2])
@pytest.mark.parametrize("held", [0, 1, 2, 3, 5])
def test_stages_are_those_of_whole_forwards_bit_for_bit(checkpoint: Checkpoint, workers: int, held: int) -> None:
    """Each stage sees what the quantized stages before it give, whoever runs how many samples at a time."""
    outputs, collected = staged(case_of(checkpoint, "mistral"), workers, held)
    expected, inputs = stage_by_stage(case_of(checkpoint, "mistral"))
    assert all(map(torch.equal, collected, inputs))
    assert [states.shape for states in outputs] == [(1, length, 96) for length in LENGTHS]
    assert all(map(torch.equal, outputs, expected))
    untouched = case_of(checkpoint, "mistral")
    assert not torch.allclose(
        outputs[0], forward(untouched.block, untouched.hidden()[0], untouched.inputs[0]), atol=0.01
    )


@pytest.mark.parametrize("workers", [1, 2])
def test_branches_of_one_input_are_quantized_together(workers: int) -> None:
    """A layer of a stage that runs after later stages runs with its quantized weight."""

    def case() -> Case:
        torch.manual_seed(0)
        stages = (Stage(("first", "second"), 96), Stage(("behind",), 64))
        return Case(Branches().requires_grad_(False), [BlockInputs((), {})] * len(LENGTHS), stages)

    outputs, collected = staged(case(), workers, held=2)
    expected, inputs = stage_by_stage(case())
    assert all(map(torch.equal, outputs, expected))
    assert all(map(torch.equal, collected, inputs))


@pytest.mark.parametrize("workers", [1, 2])
def test_each_layer_sees_each_token_once(case: Case, workers: int) -> None:
    """Where all samples stay suspended, no layer runs again; the quantized weight is used for all of them."""
    rows, used = Counter[str](), dict[str, set[bytes]]()

    def watch(name: str) -> Callable[[nn.Module, tuple[Tensor, ...], Tensor], None]:
        def hook(layer: nn.Module, arguments: tuple[Tensor, ...], _: Tensor) -> None:
            rows[name] += arguments[0].shape[1]
            used.setdefault(name, set()).add(layer.weight.numpy().tobytes())

        return hook

    for name in LAYERS:
        case.layer(name).register_forward_hook(watch(name))
    staged(case, workers, held=len(LENGTHS))
    assert rows == dict.fromkeys(LAYERS, sum(LENGTHS))
    assert {name: list(weights) for name, weights in used.items()} == {
        name: [case.layer(name).weight.numpy().tobytes()] for name in LAYERS
    }


def test_abandoned_samples_start_again_and_held_ones_do_not(case: Case) -> None:
    """With 2 of 5 held, the other 3 run the first layer once per stage and once more to the end."""
    runs = Counter[int]()
    case.layer(LAYERS[0]).register_forward_hook(lambda _, arguments, __: runs.update([arguments[0].shape[1]]))
    staged(case, workers=1, held=2)
    # The first stage pauses before it: it runs for stages 2, 3 and 4, and on the way to the end.
    assert runs == {40: 1 + 2 * 4, 17: 1, 5: 4}


def test_a_block_without_stages_is_a_plain_forward(case: Case) -> None:
    """Nothing is collected where nothing is quantized, and the block's output is what it always is."""
    case.stages = ()
    outputs, collected = staged(case, workers=2, held=0)
    assert collected == []
    with torch.inference_mode(), Workers(1):
        expected = [forward(case.block, *pair) for pair in zip(case.hidden(), case.inputs, strict=True)]
    assert all(map(torch.equal, outputs, expected))


@pytest.mark.parametrize("held", [0, 2, 3, 5])
@pytest.mark.parametrize("failing", ["collect", "quantize", "forward"])
def test_an_error_leaves_nothing_behind(case: Case, held: int, failing: str) -> None:
    """Whoever raises it: no hook stays, no forward stays suspended with its activations, and the crew works on."""
    runs = Counter[str]()

    def fail(place: str, *_: object) -> None:
        runs[place] += 1
        if place == failing and runs[place] > 2:
            raise ValueError(place)

    hook = case.layer("mlp.gate_proj").register_forward_hook(lambda *_: fail("forward"))
    hidden = case.hidden()
    inputs = [weakref.ref(states) for states in hidden]
    with Workers(2) as crew:
        with pytest.raises(ValueError, match=f"^{failing}$") as caught:
            run_staged(
                case.block, STAGES, hidden, case.inputs, crew, partial(fail, "collect"), partial(fail, "quantize"), held
            )
        hook.remove()
        del hidden, caught
        gc.collect()
        assert [reference() for reference in inputs] == [None] * len(LENGTHS)
        assert all(not case.layer(name)._forward_pre_hooks for name in LAYERS)
        hidden = case.hidden()
        run_staged(case.block, STAGES, hidden, case.inputs, crew, lambda *_: None, lambda _: None, held)
        pairs = zip(case.hidden(), case.inputs, strict=True)
        assert all(map(torch.equal, hidden, crew.map(lambda pair: forward(case.block, *pair), pairs)))


def test_inputs_are_let_go_once_the_block_has_run(case: Case) -> None:
    """The block's output takes the place of its input: nothing holds on to both."""
    hidden = case.hidden()
    inputs = [weakref.ref(states) for states in hidden]
    with Workers(2) as crew:
        run_staged(case.block, STAGES, hidden, case.inputs, crew, lambda *_: None, lambda _: None, 2)
        gc.collect()
        assert [reference() for reference in inputs] == [None] * len(LENGTHS)


def test_blocks_that_return_tuples_give_their_first_element(checkpoint: Checkpoint) -> None:
    """As those of transformers 4.57 do."""
    skeleton, weights = skeleton_of(checkpoint, "bloom"), load_weights(checkpoint("bloom"))
    (inputs, *_), block = skeleton.record(40), skeleton.blocks[0]
    layers = ["self_attention.query_key_value", "mlp.dense_4h_to_h"]
    stages = find_stages(block, torch.empty((1, 40, 96), device="meta"), inputs, layers)
    for name in skeleton.block_parameters(0):
        put(skeleton.model, name, weights[name])
    hidden = [torch.randn((1, 40, 96))]
    whole = block(hidden[0], *inputs.positional, **inputs.keyword)
    assert isinstance(whole, tuple)
    with Workers(1) as crew:
        run_staged(block, stages, hidden, [inputs], crew, lambda *_: None, lambda _: None, 1)
    assert torch.equal(hidden[0], whole[0])
