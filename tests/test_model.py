"""The model: its size, its first loss, what each token may attend to, and which shapes are refused."""

import math
from dataclasses import asdict, replace

import pytest
import torch
import torch.nn.functional as F
from hypothesis import example, given, settings
from hypothesis import strategies as st
from micro import MODEL

from tinystories_lab import model as model_module
from tinystories_lab.model import GPTConfig, KVCache, apply_rope, causal_attention, new_model, rope_tables

RESIDUAL = ("attention.out.weight", "feed_forward.down.weight")


@pytest.fixture(autouse=True)
def float64():
    """Compare in float64: no verdict may depend on how a processor rounds float32."""
    torch.set_default_dtype(torch.float64)
    yield
    torch.set_default_dtype(torch.float32)


@pytest.fixture(scope="module")
def default_model():
    return new_model(GPTConfig())


def attentive_model(config=MODEL):
    """A model with large embeddings, in which a token that must not be seen would change the logits visibly."""
    model = new_model(config)
    torch.nn.init.normal_(model.tok_emb.weight, generator=torch.Generator().manual_seed(0))
    return model


def random_ids(vocab_size, *shape, seed=1):
    return torch.randint(vocab_size, shape, generator=torch.Generator().manual_seed(seed))


# --- size and first weights -------------------------------------------------------------------------------------------


def test_default_model_has_9952320_parameters_and_no_bias(default_model):
    assert default_model.count_parameters() == 9_952_320
    assert GPTConfig().d_hidden == 856
    assert all(name.endswith(".weight") for name in default_model.state_dict()), "neither biases nor RoPE's tables"
    # 300 x 32; per layer q, k, v, out; gate, up, down with 88 hidden values; two norms; and one norm at the end
    assert new_model(MODEL).count_parameters() == 300 * 32 + 2 * (4 * 32 * 32 + 3 * 32 * 88 + 2 * 32) + 32


def test_first_loss_is_that_of_equal_probabilities(default_model):
    ids = random_ids(8_000, 1, 65)
    with torch.inference_mode():
        _, loss = default_model(ids[:, :-1], ids[:, 1:])
    assert abs(loss.item() - math.log(8_000)) < 0.15


def test_residual_projections_start_smaller_with_depth(default_model):
    smaller = 0.02 / math.sqrt(2 * 6)
    for name, parameter in default_model.named_parameters():
        if parameter.ndim == 1:
            assert (parameter == 1).all(), f"{name} is a norm and starts at 1"
        else:
            expected = smaller if name.endswith(RESIDUAL) else 0.02
            assert parameter.std().item() == pytest.approx(expected, rel=0.03), name
            assert abs(parameter.mean().item()) < 1e-3, name
    assert sum(name.endswith(RESIDUAL) for name, _ in default_model.named_parameters()) == 2 * 6


def test_first_weights_depend_on_the_seed_alone():
    torch.manual_seed(1)
    before = torch.get_rng_state()
    model = new_model(MODEL, seed=3)
    assert torch.equal(torch.get_rng_state(), before), "drawing weights moved the global random state"
    torch.manual_seed(2)
    same, other = new_model(MODEL, seed=3).state_dict(), new_model(MODEL, seed=4).state_dict()
    assert all(torch.equal(weight, same[name]) for name, weight in model.state_dict().items())
    assert not torch.equal(model.tok_emb.weight, other["tok_emb.weight"])


def test_head_and_embedding_are_one_tensor_unless_untied():
    model, ids, outputs = new_model(MODEL), random_ids(300, 1, 4), []
    unread = [row for row in range(300) if row not in ids]
    model.norm.register_forward_hook(lambda module, args, output: outputs.append(output))
    torch.testing.assert_close(model(ids)[0], outputs[0] @ model.tok_emb.weight.T)
    model(ids, ids)[1].backward()
    assert (model.tok_emb.weight.grad[unread] != 0).any(), "as the head, every row gets a gradient"
    untied = new_model(replace(MODEL, tie_embeddings=False))
    untied(ids, ids)[1].backward()
    assert (untied.tok_emb.weight.grad[unread] == 0).all() and (untied.head.weight.grad[unread] != 0).any()


# --- attention and positions ------------------------------------------------------------------------------------------


def test_changing_a_later_token_never_changes_an_earlier_logit():
    model, ids = attentive_model(), random_ids(300, 3, 16)
    with torch.inference_mode():
        before, _ = model(ids)
        for position in range(1, 16):
            changed = ids.clone()
            changed[:, position] = (changed[:, position] + 1) % 300
            after, _ = model(changed)
            torch.testing.assert_close(after[:, :position], before[:, :position], atol=1e-6, rtol=0)
            assert (after[:, position:] - before[:, position:]).abs().amax(dim=(0, 2)).min() > 1e-3
        torch.testing.assert_close(model(ids[:, :5])[0], before[:, :5], atol=1e-5, rtol=0)


@pytest.mark.parametrize("dtype, tolerance", [(torch.float64, 1e-5), (torch.bfloat16, 0.05)])
def test_attention_in_blocks_equals_pytorchs(dtype, tolerance):
    for T in (1, model_module._QUERY_BLOCK, 3 * model_module._QUERY_BLOCK + 7):
        *ours, weights = torch.randn(4, 2, 3, T, 8, generator=torch.Generator().manual_seed(T)).to(dtype)
        theirs = [tensor.clone().requires_grad_() for tensor in ours]
        ours = [tensor.clone().requires_grad_() for tensor in ours]
        out, expected = causal_attention(*ours), F.scaled_dot_product_attention(*theirs, is_causal=True)
        assert out.dtype == dtype
        for result in (out, expected):
            (result * weights).sum().backward()
        pairs = [(out, expected), *((one.grad, other.grad) for one, other in zip(ours, theirs, strict=True))]
        for one, other in pairs:
            torch.testing.assert_close(one, other, atol=tolerance, rtol=tolerance)


def test_rope_rotates_each_pair_by_position_times_its_frequency():
    cos, sin = rope_tables(512, 8, 10_000.0)
    x = torch.arange(1.0, 9.0)[None]
    for position in (0, 1, 100, 511):
        rotated = apply_rope(x, cos[position : position + 1], sin[position : position + 1])[0]
        for pair in range(4):  # the pairs are (i, i + 4), as in Llama
            angle = position * 10_000 ** (-2 * pair / 8)
            first, second = pair + 1.0, pair + 5.0
            assert rotated[pair] == pytest.approx(first * math.cos(angle) - second * math.sin(angle), abs=1e-4)
            assert rotated[pair + 4] == pytest.approx(second * math.cos(angle) + first * math.sin(angle), abs=1e-4)


def test_attention_depends_on_the_order_of_tokens():
    model = attentive_model(replace(MODEL, n_layer=1))  # in one layer, only RoPE shows the order of earlier tokens
    with torch.inference_mode():
        one, other = model(torch.tensor([[5, 6, 7]]))[0], model(torch.tensor([[6, 5, 7]]))[0]
    assert (one[0, -1] - other[0, -1]).abs().max() > 1e-4, "without positions, the same bag of tokens looks the same"


def test_a_closed_gate_closes_the_feed_forward_network():
    network = new_model(MODEL).blocks[0].feed_forward
    torch.nn.init.zeros_(network.gate.weight)
    assert (network(torch.randn(2, 3, 32)) == 0).all()


@settings(max_examples=40)
@given(st.lists(st.integers(1, 10), min_size=1, max_size=4), st.integers(0, 6), st.integers(0, 10_000), st.booleans())
@example([1], 15, 0, False)  # to max_len
@example([1], 15, 0, True)
def test_with_the_cache_logits_are_those_of_the_whole_text_whatever_the_other_rows_are(
    lengths, further, seed, is_static
):
    model = attentive_model()
    prompts = [random_ids(300, length, seed=seed + row).tolist() for row, length in enumerate(lengths)]
    then = random_ids(300, len(prompts), further, seed=seed + 99)
    cache = KVCache(model, lengths, is_static)
    padded = torch.tensor([prompt + [0] * (max(lengths) - len(prompt)) for prompt in prompts])
    with torch.inference_mode():
        logits = [model(padded, cache=cache)[0], *(model(ids[:, None], cache=cache)[0] for ids in then.unbind(1))]
        for row, prompt in enumerate(prompts):
            uncached, _ = model(torch.tensor([prompt + then[row].tolist()]))
            cached = torch.cat(logits, dim=1)[row]
            torch.testing.assert_close(cached, uncached[0, len(prompt) - 1 :], atol=1e-4, rtol=1e-4)


# --- the loss ---------------------------------------------------------------------------------------------------------


def test_loss_is_the_cross_entropy_computed_by_hand():
    model, ids = new_model(MODEL), random_ids(300, 3, 9)
    x, y = ids[:, :-1], ids[:, 1:]
    (logits, no_loss), (no_logits, loss) = model(x), model(x, y)
    assert logits.shape == (3, 8, 300) and no_loss is no_logits is None
    by_hand = [
        math.log(sum(math.exp(value) for value in logits[b, t].tolist())) - logits[b, t, y[b, t]].item()
        for b in range(3)
        for t in range(8)
    ]
    assert loss.item() == pytest.approx(sum(by_hand) / len(by_hand), abs=1e-5)


# --- configs ----------------------------------------------------------------------------------------------------------


def test_a_sequence_over_max_len_is_refused_with_both_lengths():
    with pytest.raises(ValueError, match=r"17 tokens; .*max_len=16"):
        new_model(MODEL)(random_ids(300, 1, 17))


def test_shapes_that_cannot_be_are_refused_with_their_values():
    for d_model, n_head in ((30, 2), (32, 3), (33, 1), (34, 4)):  # RoPE rotates pairs of values
        with pytest.raises(ValueError, match=f"d_model is {d_model}.* n_head {n_head}"):
            replace(MODEL, d_model=d_model, n_head=n_head)
    for field in ("vocab_size", "n_layer", "n_head", "d_model", "max_len", "hidden"):
        for value in (0, -1):
            with pytest.raises(ValueError, match=f"{field} is {value}; it must be an integer from"):
                replace(MODEL, **{field: value})


def test_stored_values_make_the_same_config_under_old_names_too():
    config = replace(MODEL, tie_embeddings=False, hidden=64)
    stored = asdict(config)
    assert GPTConfig.from_dict(stored) == config
    assert (
        GPTConfig.from_dict({"tied" if name == "tie_embeddings" else name: stored[name] for name in stored}) == config
    )
    assert GPTConfig.from_dict({"n_layer": 3}) == GPTConfig(n_layer=3)
