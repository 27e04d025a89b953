"""The network: its size, its first loss, what it may see, and what it refuses."""

import math
from dataclasses import replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from tinystories_lab.attention import _QUERIES_AT_ONCE, apply_rope, causal_attention, rope_tables
from tinystories_lab.model import _TOKENS_AT_ONCE as AT_ONCE
from tinystories_lab.model import GPTConfig, GPTMini
from tinystories_lab.presets import PRESETS
from tinystories_lab.recipe import TrainConfig, make_optimizer

TOKENS_AT_ONCE = AT_ONCE["cpu"]
MICRO = GPTConfig(vocab_size=300, n_layer=2, n_head=2, d_model=32, max_len=16)
RESIDUAL = ("attention.out.weight", "feed_forward.down.weight")


def micro_model(seed=0, config=MICRO):
    torch.manual_seed(seed)
    return GPTMini(config)


def random_ids(vocab_size, *shape, seed=1):
    return torch.randint(vocab_size, shape, generator=torch.Generator().manual_seed(seed))


@pytest.fixture(scope="module")
def default_model():
    torch.manual_seed(0)
    return GPTMini(GPTConfig())


def test_default_model_has_9952320_parameters(default_model):
    assert default_model.count_parameters() == 9_952_320
    assert GPTConfig().d_hidden == 856


@pytest.mark.parametrize("config", [GPTConfig(), PRESETS["tiny"].model], ids=["default", "tiny"])
def test_first_loss_is_that_of_knowing_nothing(config):
    torch.manual_seed(0)
    ids = random_ids(config.vocab_size, 2, 129)
    with torch.inference_mode():
        _, loss = GPTMini(config)(ids[:, :-1], ids[:, 1:])
    assert abs(loss.item() - math.log(config.vocab_size)) < 0.15


@pytest.mark.parametrize("length", [2, 7, 16])
def test_changing_a_later_token_never_changes_an_earlier_logit(length):
    model = micro_model()
    torch.nn.init.normal_(model.tok_emb.weight)  # large, so that a leak would show
    ids = random_ids(300, 3, length)
    with torch.inference_mode():
        before, _ = model(ids)
        for position in range(1, length):
            changed = ids.clone()
            changed[:, position] = (changed[:, position] + 1) % 300
            after, _ = model(changed)
            torch.testing.assert_close(after[:, :position], before[:, :position], atol=1e-5, rtol=0)
            assert (after[:, position:] - before[:, position:]).abs().amax(dim=(0, 2)).min() > 1e-3


def test_a_shorter_input_has_the_logits_of_the_longer_ones_beginning():
    model, ids = micro_model(), random_ids(300, 2, 16)
    with torch.inference_mode():
        torch.testing.assert_close(model(ids[:, :5])[0], model(ids)[0][:, :5], atol=1e-5, rtol=0)


positions = st.integers(0, 255)


@given(positions, positions, positions, st.integers(0, 10_000))
def test_rope_lets_attention_see_only_the_distance(at_query, at_key, shift, seed):
    q, k = torch.randn(2, 1, 32, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    cos, sin = (table.double() for table in rope_tables(512, 32, 10_000.0))

    def score(i, j):
        return (apply_rope(q, cos[i : i + 1], sin[i : i + 1]) * apply_rope(k, cos[j : j + 1], sin[j : j + 1])).sum()

    torch.testing.assert_close(score(at_query, at_key), score(at_query + shift, at_key + shift), atol=1e-4, rtol=0)


@pytest.mark.parametrize("position", [0, 1, 100, 511])
def test_rope_turns_each_pair_by_position_times_its_frequency(position):
    cos, sin = rope_tables(512, 8, 10_000.0)
    x = torch.arange(1.0, 9.0)[None]
    turned = apply_rope(x, cos[position : position + 1], sin[position : position + 1])[0]
    for pair in range(4):  # the pairs are (i, i + 4), as in Llama
        angle = position * 10_000 ** (-2 * pair / 8)
        first, second = pair + 1.0, pair + 5.0
        assert turned[pair] == pytest.approx(first * math.cos(angle) - second * math.sin(angle), abs=1e-4)
        assert turned[pair + 4] == pytest.approx(second * math.cos(angle) + first * math.sin(angle), abs=1e-4)


def test_attention_sees_the_order_of_tokens():
    model = micro_model(config=replace(MICRO, n_layer=1))  # in one layer, only RoPE tells the order of what came before
    torch.nn.init.normal_(model.tok_emb.weight)
    with torch.inference_mode():
        one, other = model(torch.tensor([[5, 6, 7]]))[0], model(torch.tensor([[6, 5, 7]]))[0]
    assert (one[0, -1] - other[0, -1]).abs().max() > 1e-4, "without positions, the same bag of tokens looks the same"


def test_residual_projections_are_drawn_smaller_by_the_depth(default_model):
    smaller = 0.02 / math.sqrt(2 * 6)
    for name, parameter in default_model.named_parameters():
        if parameter.ndim == 1:
            assert (parameter == 1).all(), f"{name} is a norm and starts at 1"
        else:
            expected = smaller if name.endswith(RESIDUAL) else 0.02
            assert parameter.std().item() == pytest.approx(expected, rel=0.03), name
            assert abs(parameter.mean().item()) < 1e-3, name
    assert sum(name.endswith(RESIDUAL) for name, _ in default_model.named_parameters()) == 2 * 6


def test_head_and_embedding_are_one_tensor():
    model = micro_model()
    assert [name for name, p in model.named_parameters() if p.shape[0] == 300] == ["tok_emb.weight"]
    ids = random_ids(300, 1, 4)
    seen = []
    model.norm.register_forward_hook(lambda module, given, made: seen.append(made))
    logits, _ = model(ids)
    torch.testing.assert_close(logits, seen[0] @ model.tok_emb.weight.T)
    model(ids, ids)[1].backward()
    unseen = [row for row in range(300) if row not in ids]
    assert (model.tok_emb.weight.grad[unseen] != 0).any(), "as the head, every row gets a gradient"


def test_rope_tables_are_not_in_the_state_and_are_right_after_load():
    model, other = micro_model(0), micro_model(1)
    state = model.state_dict()
    assert not [name for name in state if "cos" in name or "sin" in name]
    other.load_state_dict(state)
    cos, sin = rope_tables(16, 16, 10_000.0)
    assert torch.equal(other.cos, cos) and torch.equal(other.sin, sin)
    ids = random_ids(300, 2, 16)
    assert torch.equal(other(ids)[0], model(ids)[0])


def test_loss_is_the_cross_entropy_computed_by_hand():
    model, ids = micro_model(), random_ids(300, 3, 9)
    x, y = ids[:, :-1], ids[:, 1:]
    logits, no_loss = model(x)
    assert logits.shape == (3, 8, 300) and no_loss is None
    no_logits, loss = model(x, y)
    assert no_logits is None
    by_hand = [
        math.log(sum(math.exp(value) for value in logits[b, t].tolist())) - logits[b, t, y[b, t]].item()
        for b in range(3)
        for t in range(8)
    ]
    assert loss.item() == pytest.approx(sum(by_hand) / len(by_hand), abs=1e-5)


def test_loss_and_gradients_of_a_large_batch_are_those_of_all_logits_at_once():
    """The loss is summed over parts, the last of them smaller; nothing of that may show."""
    config = replace(MICRO, max_len=400)
    model, ids = micro_model(config=config), random_ids(300, 6, 401)
    x, y = ids[:, :-1], ids[:, 1:]
    assert x.numel() > 2 * TOKENS_AT_ONCE and x.numel() % TOKENS_AT_ONCE
    one = model(x, y)[1]
    in_parts = torch.autograd.grad(one, list(model.parameters()))
    other = torch.nn.functional.cross_entropy(model(x)[0].flatten(0, 1), y.flatten())
    torch.testing.assert_close(one, other)
    at_once = torch.autograd.grad(other, list(model.parameters()))
    for part, whole in zip(in_parts, at_once, strict=True):
        torch.testing.assert_close(part, whole, atol=1e-6, rtol=1e-3)


def test_the_loss_holds_the_logits_of_one_part_only():
    config = replace(MICRO, vocab_size=5_000, n_layer=1, max_len=512)
    model, ids = micro_model(config=config), random_ids(5_000, 16, 512)
    kept = []
    with torch.autograd.graph.saved_tensors_hooks(lambda tensor: kept.append(tensor.numel()) or tensor, lambda t: t):
        model(ids, ids)[1].backward()
    assert max(kept) <= TOKENS_AT_ONCE * 5_000 < ids.numel() * 5_000 / 4
    assert sum(size == TOKENS_AT_ONCE * 5_000 for size in kept) <= 16, "logits were kept for the gradient"


@pytest.mark.parametrize("T", [1, 5, _QUERIES_AT_ONCE, _QUERIES_AT_ONCE + 1, 3 * _QUERIES_AT_ONCE + 7])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_attention_in_parts_is_torchs_own(T, dtype):
    torch.manual_seed(0)
    ours, theirs = (
        [
            torch.randn(2, 3, T, 8, generator=torch.Generator().manual_seed(i)).to(dtype).requires_grad_()
            for i in range(3)
        ]
        for _ in range(2)
    )
    out = causal_attention(*ours)
    expected = torch.nn.functional.scaled_dot_product_attention(*theirs, is_causal=True)
    assert out.dtype == dtype
    close = dict(atol=1e-5, rtol=1e-4) if dtype is torch.float32 else dict(atol=0.05, rtol=0.05)
    torch.testing.assert_close(out, expected, **close)
    weights = torch.randn(out.shape, generator=torch.Generator().manual_seed(9)).to(dtype)
    (out * weights).sum().backward()
    (expected * weights).sum().backward()
    for one, other in zip(ours, theirs, strict=True):
        torch.testing.assert_close(one.grad, other.grad, **close)


def read_with_cache(model, prompts, then):
    """Logits after the prompts, and after each further token, (len(prompts), 1 + len(then), V)."""
    cache = model.new_cache([len(prompt) for prompt in prompts])
    padded = torch.tensor([prompt + [0] * (cache.longest - len(prompt)) for prompt in prompts])
    with torch.inference_mode():
        logits = [model(padded, cache=cache)[0]]
        logits += [model(ids[:, None], cache=cache)[0] for ids in then.unbind(1)]
    return torch.cat(logits, dim=1)


@given(st.lists(st.integers(1, 10), min_size=1, max_size=4), st.integers(0, 6), st.integers(0, 10_000))
@settings(deadline=None)
def test_with_the_cache_logits_are_those_of_the_whole_text_whatever_else_is_in_the_batch(lengths, further, seed):
    model = micro_model()
    torch.nn.init.normal_(model.tok_emb.weight)  # large, so that a leak would show
    prompts = [random_ids(300, length, seed=seed + row).tolist() for row, length in enumerate(lengths)]
    then = random_ids(300, len(prompts), further, seed=seed + 99)
    logits = read_with_cache(model, prompts, then)
    for row, prompt in enumerate(prompts):
        with torch.inference_mode():
            whole, _ = model(torch.tensor([prompt + then[row].tolist()]))
        torch.testing.assert_close(logits[row], whole[0, len(prompt) - 1 :], atol=1e-4, rtol=1e-4)


def test_with_the_cache_a_text_may_grow_to_max_len():
    model, ids = micro_model(), random_ids(300, 1, 16)
    logits = read_with_cache(model, [ids[0, :1].tolist()], ids[:, 1:])
    with torch.inference_mode():
        torch.testing.assert_close(logits, model(ids)[0], atol=1e-5, rtol=1e-4)


def test_nothing_has_a_bias():
    model = micro_model()
    assert all(name.endswith(".weight") for name, _ in model.named_parameters())
    # 300 x 32, then per layer: q, k, v, out; gate, up, down of 88; two norms; at the end one norm
    assert model.count_parameters() == 300 * 32 + 2 * (4 * 32 * 32 + 3 * 32 * 88 + 2 * 32) + 32


def test_a_gate_that_is_shut_closes_the_feed_forward_part():
    part = micro_model().blocks[0].feed_forward
    torch.nn.init.zeros_(part.gate.weight)
    assert (part(torch.randn(2, 3, 32)) == 0).all()


def test_one_batch_can_be_learned_by_heart():
    model, ids = micro_model(), random_ids(300, 4, 17)
    config = TrainConfig(batch_size=4, seq_len=16, peak_lr=1e-2, total_steps=200, warmup_steps=0)
    optimizer = make_optimizer(model, config)
    for _ in range(200):
        _, loss = model(ids[:, :-1], ids[:, 1:])
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
    assert loss.item() < 0.5


def test_too_long_input_is_refused_with_both_lengths():
    with pytest.raises(ValueError, match=r"17 tokens in a row.*max_len=16"):
        micro_model()(random_ids(300, 1, 17))


@pytest.mark.parametrize(("d_model", "n_head"), [(30, 2), (32, 3), (33, 1), (34, 4)])
def test_heads_that_rope_cannot_pair_are_refused(d_model, n_head):
    with pytest.raises(ValueError, match=rf"d_model {d_model} over n_head {n_head} must be even"):
        replace(MICRO, d_model=d_model, n_head=n_head)


@pytest.mark.parametrize("field", ["vocab_size", "n_layer", "n_head", "d_model", "max_len"])
@pytest.mark.parametrize("value", [0, -1])
def test_sizes_below_one_are_refused(field, value):
    with pytest.raises(ValueError, match=rf"{field}={value}.* must be at least 1"):
        replace(MICRO, **{field: value})
