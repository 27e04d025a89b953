"""Generating text: the probabilities of the next token, and sampling from them."""

import random
import re

import numpy as np
import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st
from micro import MODEL

from tinystories_lab.data.text import PROMPTS
from tinystories_lab.generate import (
    context_window,
    generate,
    generate_batch,
    generate_samples,
    next_token_probabilities,
    sample,
    stream,
    stream_batch,
)
from tinystories_lab.model import GPTMini, new_model
from tinystories_lab.tokenizer import encode_prompt

START = [5, 6, 7]
LONG = [(7 * i) % 300 for i in range(50)]


@pytest.fixture(autouse=True, scope="module")
def float64():
    """Sample in float64: no drawn token may depend on how a processor rounds float32."""
    torch.set_default_dtype(torch.float64)
    yield
    torch.set_default_dtype(torch.float32)


@pytest.fixture(scope="module")
def model(float64):
    """Untrained, with weights large enough that some tokens are more likely than others."""
    model = new_model(MODEL).eval()
    for parameter in model.parameters():
        parameter.data *= 8 if parameter.ndim == 2 else 1
    return model


@pytest.fixture
def reads(model, monkeypatch):
    """How many tokens the model has read in each of its calls."""
    counts, forward = [], model.forward
    monkeypatch.setattr(model, "forward", lambda ids, **kw: counts.append(ids.numel()) or forward(ids, **kw))
    return counts


def greedy(model, ids, count):
    """The most likely continuation, computed without the cache."""
    ids = list(ids)
    for _ in range(count):
        with torch.inference_mode():
            logits, _ = model(torch.tensor([context_window(ids, 16)]))
        ids.append(int(logits[0, -1].argmax()))
    return ids[-count:]


def assert_close(one, other):
    assert (one - other).abs().max() < 1e-5


# --- probabilities ----------------------------------------------------------------------------------------------------


logits_of = st.lists(st.integers(-40, 40).map(lambda tenths: tenths / 10), min_size=1, max_size=30).map(torch.tensor)


@given(logits_of, st.floats(0.2, 3), st.none() | st.integers(1, 40), st.none() | st.floats(0.01, 1))
def test_probabilities_are_at_least_0_and_sum_to_1(logits, temperature, top_k, top_p):
    probabilities = next_token_probabilities(logits, temperature, top_k, top_p)
    assert probabilities.shape == logits.shape and probabilities.dtype == torch.float32
    assert (probabilities >= 0).all() and probabilities.sum().item() == pytest.approx(1, abs=1e-5)
    assert probabilities[logits.argmax()] == probabilities.max()


@given(logits_of, st.none() | st.integers(1, 40), st.floats(0.2, 3))
def test_exactly_top_k_tokens_stay_and_they_are_the_most_likely(logits, top_k, temperature):
    probabilities = next_token_probabilities(logits, temperature, top_k)
    kept = probabilities > 0
    assert kept.sum() == min(top_k or 40, len(logits))
    assert kept.all() or logits[kept].min() >= logits[~kept].max()
    assert_close(probabilities[kept], torch.softmax(logits[kept] / temperature, -1))


@given(logits_of, st.floats(0.01, 1), st.floats(0.2, 3))
def test_top_p_is_the_smallest_set_that_reaches_p(logits, top_p, temperature):
    full = next_token_probabilities(logits, temperature, None)
    probabilities = next_token_probabilities(logits, temperature, None, top_p)
    kept = probabilities > 0
    assert kept.any() and (kept.all() or full[kept].min() >= full[~kept].max())
    total = full[kept].sum()
    assert total >= top_p - 1e-5, "the set does not reach p"
    assert total - full[kept].min() < top_p + 1e-5, "a smaller set would do"
    assert_close(probabilities[kept], full[kept] / total)


def test_among_equals_top_k_keeps_the_first_and_top_p_counts_what_top_k_left():
    assert next_token_probabilities(torch.zeros(6), 1.0, 2).tolist() == [0.5, 0.5, 0, 0, 0, 0]
    logits = torch.tensor([0.4, 0.3, 0.2, 0.1]).log()  # of the two most likely, the first has 4/7 = 0.57
    assert next_token_probabilities(logits, 1.0, 2, 0.55).tolist() == [1, 0, 0, 0]
    assert next_token_probabilities(logits, 1.0, 2, 0.6).tolist() == pytest.approx([4 / 7, 3 / 7, 0, 0])


def test_a_lower_temperature_is_closer_to_greedy():
    logits = torch.tensor([2.0, 1.0, 0.0])
    likeliest = [next_token_probabilities(logits, t, None)[0].item() for t in (0, 1e-30, 0.5, 1.0, 2.0)]
    assert likeliest == sorted(likeliest, reverse=True) and likeliest[:2] == [1, 1] and likeliest[2] < 1


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16, torch.float16])
def test_probabilities_of_many_positions_are_those_of_each(dtype):
    logits = torch.randn(2, 4, 20, generator=torch.Generator().manual_seed(0)).to(dtype)
    before = logits.clone()
    for filters in [(0.0,), (0.8, 5), (0.8, 5, 0.7)]:
        each = [next_token_probabilities(row, *filters) for row in logits.flatten(0, 1)]
        assert_close(next_token_probabilities(logits, *filters).flatten(0, 1), torch.stack(each))
    assert each[0].dtype == torch.float32
    assert torch.equal(logits, before), "the caller's logits were changed"


def test_tokens_are_drawn_as_often_as_they_are_probable():
    probabilities = torch.tensor([[0.0, 0.5, 0.0, 0.3, 0.2, 0.0], [0, 0, 0, 0, 0, 1.0]])
    generator = torch.Generator().manual_seed(0)
    points = torch.rand(4_000, 2, generator=generator, dtype=torch.float64)
    drawn = torch.stack([sample(probabilities, row) for row in points])
    assert (drawn[:, 1] == 5).all()
    shares = torch.bincount(drawn[:, 0], minlength=6) / 4_000
    assert (shares[probabilities[0] == 0] == 0).all(), "an impossible token was drawn"
    assert (shares - probabilities[0]).abs().max() < 0.03


# --- streams of ids ---------------------------------------------------------------------------------------------------


def test_the_seed_alone_decides_and_the_global_random_states_stay(model):
    first = list(stream(model, START, 20, seed=1))
    for seed in (1, 2):
        torch.manual_seed(seed), np.random.seed(seed), random.seed(seed)
        before = torch.get_rng_state(), np.random.get_state()[1].tolist(), random.getstate()
        assert list(stream(model, START, 20, seed=1)) == first
        assert torch.equal(torch.get_rng_state(), before[0])
        assert (np.random.get_state()[1].tolist(), random.getstate()) == before[1:]
    others = [list(stream(model, START, 20, seed=seed)) for seed in (3, 4, None, None, None)]
    assert len({tuple(ids) for ids in [first, *others]}) == 6, "other seeds and no seed give other stories"


@pytest.mark.parametrize(
    "filters",
    [{"temperature": 0}, {"temperature": 0, "top_p": 0.5}, {"top_k": 1}, {"top_k": None, "top_p": 1e-9}],
    ids=str,
)
def test_greedy_settings_take_the_most_likely_token_after_the_end_of_the_text(model, filters):
    for prompt in (START, LONG):
        assert list(stream(model, prompt, 24, seed=0, **filters)) == greedy(model, prompt, 24)


def test_the_stop_id_ends_the_stream_and_is_not_yielded(model):
    ids = list(stream(model, START, 20, seed=1))
    assert list(stream(model, START, 20, seed=1, stop_id=ids[6])) == ids[: ids.index(ids[6])]


def test_ids_come_one_by_one_and_no_more_than_max_new_tokens(model):
    prompt, endless, ids = list(START), stream(model, START, 10**9, seed=1), []
    for _ in range(3):
        ids.append(next(endless))
        assert torch.is_grad_enabled() and not torch.is_inference_mode_enabled(), "the caller's settings are back"
    for count in (1, 3, 40):
        generated = list(stream(model, prompt, count, seed=1))
        assert len(generated) == count and generated[:3] == ids[:count]
    assert prompt == START, "the caller's prompt was changed"


@given(st.integers(1, 9), st.integers(0, 60))
def test_the_window_is_the_end_of_the_text_never_over_max_len_nor_much_under_half_of_it(max_len, length):
    ids = list(range(length))
    seen = context_window(ids, max_len)
    assert seen == ids[length - len(seen) :]
    assert min(length, max_len - max(1, max_len // 2) + 1) <= len(seen) <= max_len
    if length <= max_len:
        assert seen == ids
    elif len(context_window(ids[:-1], max_len)) < max_len:
        assert seen == [*context_window(ids[:-1], max_len), ids[-1]], "it only grows until it is full: the cache holds"


def test_after_the_prompt_each_token_is_read_alone_and_a_full_window_is_halved(model, reads):
    list(stream(model, START, 32, seed=1))
    assert reads == [3] + [1] * 13 + ([9] + [1] * 7) * 2 + [9, 1]


ragged = st.lists(st.lists(st.integers(0, 299), min_size=1, max_size=20), min_size=1, max_size=5)


@settings(max_examples=20)
@given(ragged, st.integers(1, 30), st.sampled_from([0, 0.8]), st.integers(0, 99))
def test_a_batch_generates_what_each_prompt_gives_alone(model, prompts, count, temperature, seed):
    seeds = range(seed, seed + len(prompts))
    alone = [
        list(stream(model, prompt, count, temperature, seed=one, stop_id=7))
        for prompt, one in zip(prompts, seeds, strict=True)
    ]
    turns = list(stream_batch(model, prompts, count, temperature, seeds=seeds, stop_id=7))
    together = [[ids[row] for ids in turns if ids[row] is not None] for row in range(len(prompts))]
    assert together == alone
    assert len(turns) == max(map(len, alone)), "a turn without any token"


def test_finished_rows_are_soon_no_longer_computed(model, reads):
    stop_id = next(stream(model, [0], 1, seed=0))
    reads.clear()
    turns = list(stream_batch(model, [[1], [0], [0], [0]], 5, seeds=[1, 0, 0, 0], stop_id=stop_id))
    assert turns[0][1:] == [None] * 3 and len(turns) == 5
    assert reads == [4, 2, 1, 1, 1]


def test_a_row_may_finish_with_a_full_window(model):
    (first,) = stream(model, LONG[:15], 1, seed=0)
    turns = list(stream_batch(model, [LONG[:15], [3], [3]], 8, seeds=[0, 1, 2], stop_id=first))
    assert [ids[1] for ids in turns] == list(stream(model, [3], 8, seed=1, stop_id=first))


def test_values_out_of_range_are_refused(model):
    wrong = {
        "temperature": (-0.5, float("nan"), float("inf"), 101, True, None, "0.8"),
        "top_k": (0, -3, 2.5, True, "5"),
        "top_p": (0, 1.5, float("nan"), -1, True, "0.9"),
    }
    for name, values in wrong.items():
        for value in values:
            for call in (lambda **filters: list(stream(model, START, 1, **filters)), next_token_probabilities):
                arguments = {"logits": torch.zeros(5)} if call is next_token_probabilities else {}
                with pytest.raises(ValueError, match=re.escape(f"{name} is {value!r}; it must be ")):
                    call(**arguments, **{name: value})
    for ids, found in (([], r"\[\]"), ([5, 300], r"\[5, 300\]"), ([-1], r"\[-1\]")):
        with pytest.raises(ValueError, match=f"each from 0 to 299; got {found}: is this the model's tokenizer"):
            list(stream(model, ids, 1))


def test_a_wrong_length_or_seed_is_named_before_anything_is_computed(model, tokenizer, reads):
    for count in (0, -1, 2.5, True, None, "9"):
        with pytest.raises(ValueError, match=rf"max_new_tokens is {count!r}; it must be an integer of at least 1"):
            generate(model, tokenizer, "Lily", count)
    for seed in (1.5, "1", True, 2**64, -(2**63) - 1):
        with pytest.raises(ValueError, match=rf"seed is {seed!r}; it must be an integer of 64 bits, or None"):
            generate(model, tokenizer, "Lily", 3, seed=seed)
    for seeds in ([1], [1, 2, 3], []):
        with pytest.raises(ValueError, match=f"there are {len(seeds)} seeds for 2 prompts; each prompt needs one"):
            generate_batch(model, tokenizer, ["A", "B"], 3, seeds=seeds)
    assert not reads


NUMBERS = st.sampled_from(
    [0, 1, -1, 5e-324, 1e-50, 1e-38, 0.8, 1e6, 2**70, float("nan"), float("inf"), True, "1", 1e-7]
)
NUMBERS |= st.none() | st.floats() | st.integers()


@settings(max_examples=300)
@given(NUMBERS, NUMBERS, NUMBERS, st.integers(-2, 3) | NUMBERS.filter(lambda it: not isinstance(it, int)), NUMBERS)
@example(1e-50, None, None, 3, 1)
@example(np.float32(0.8), np.int64(3), np.float32(0.9), np.int32(2), np.uint64(7))
@example(0.8, None, 5e-324, 3, -(2**63))
@example(5e-324, 2, 1e-300, 3, 2**64 - 1)
@example(100, 2**70, 1, 3, None)
def test_any_setting_gives_ids_of_the_vocabulary_and_finite_probabilities_or_a_valueerror(
    model, temperature, top_k, top_p, count, seed
):
    filters = {"temperature": temperature, "top_k": top_k, "top_p": top_p}
    try:
        ids = list(stream(model, START, count, **filters, seed=seed))
    except ValueError as error:
        assert "; it must be a" in str(error)
        return
    assert len(ids) == count and all(0 <= token < 300 for token in ids)
    probabilities = next_token_probabilities(torch.tensor([3.0, 1e4, -1e4, 1e4, 0.0]), **filters)
    assert (probabilities >= 0).all() and probabilities.sum().item() == pytest.approx(1, abs=1e-5)


# --- stories ----------------------------------------------------------------------------------------------------------


def test_a_story_begins_with_its_prompt_or_after_the_end_of_the_text_and_comes_with_its_settings(model, tokenizer):
    filters = {"temperature": 0.5, "top_k": 20, "top_p": 0.9}
    rows = generate_batch(model, tokenizer, ["Lily found", ""], 12, *filters.values(), seeds=[3, 2])
    for row, prompt, ids, seed in zip(rows, ("Lily found", ""), (None, [0]), (3, 2), strict=True):
        new = list(stream(model, ids or tokenizer.encode(prompt).ids, 12, *filters.values(), seed=seed, stop_id=0))
        generated = {"prompt": prompt, "story": prompt + tokenizer.decode(new).rstrip("\ufffd"), "ended": len(new) < 12}
        assert row == generated | filters | {"seed": seed, "max_new_tokens": 12}
        assert generate(model, tokenizer, prompt, 12, **filters, seed=seed) == row["story"]


@pytest.mark.parametrize("prompt", ["Lily found", "", "Lily\n", "Lily,\n\n", "Lily  found"])
def test_spaces_at_the_end_of_a_prompt_change_nothing(model, tokenizer, prompt):
    (plain, *spaced) = generate_batch(model, tokenizer, [prompt, prompt + " ", prompt + "   "], 12, seeds=[1] * 3)
    assert spaced == [plain] * 2 and plain["story"].startswith(prompt)
    assert encode_prompt(tokenizer, prompt + " ") == encode_prompt(tokenizer, prompt)
    assert tokenizer.decode(encode_prompt(tokenizer, prompt)) == prompt, "everything else of it is read"


def test_a_story_has_no_double_space_where_its_prompt_ended_in_a_space(tokenizer):
    certain = Certain(tokenizer.token_to_id("Ġfound"))
    assert generate(certain, tokenizer, "Lily ", 2) == "Lily found found"


def test_a_run_keeps_ten_stories_of_its_prompts_in_turn_the_same_at_every_call(model, tokenizer):
    rows = generate_samples(model, tokenizer, 6, ["A", "B", "C"])
    assert rows == generate_samples(model, tokenizer, 6, ["A", "B", "C"])
    assert [row["prompt"] for row in rows] == list("ABCABCABCA")
    assert [row["seed"] for row in rows] == list(range(10))


class Certain(GPTMini):
    """A model that is certain of one token."""

    def __init__(self, token):
        super().__init__(MODEL)
        self.token = token

    def forward(self, ids, targets=None, cache=None):
        logits, _ = super().forward(ids, cache=cache)
        return torch.nn.functional.one_hot(torch.full(logits.shape[:2], self.token), 300).float() * 100, None


def test_a_story_has_ended_if_the_model_says_so(tokenizer):
    for token, prompt, ended, story in ((0, "The end.", True, "The end."), ("a", "B", False, "Baaaaa")):
        certain = Certain(tokenizer.token_to_id(token) if token else token)
        (row,) = generate_batch(certain, tokenizer, [prompt], 5)
        assert (row["ended"], row["story"]) == (ended, story)


def test_the_five_prompts_are_the_chapters():
    assert len(PROMPTS) == 5 and PROMPTS[0] == "Once upon a time" and PROMPTS[4] == "There was a kind"
