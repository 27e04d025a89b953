"""Ids to story: the odds of the next token, and drawing from them."""

import random

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import settings as given_settings
from hypothesis import strategies as st

from tinystories_lab.generate import (
    generate,
    stream,
    stream_many,
    tell,
    window,
)
from tinystories_lab.model import GPTConfig, GPTMini
from tinystories_lab.sampling import draw, next_token_probabilities
from tinystories_lab.sources import END_OF_TEXT
from tinystories_lab.words import PROMPTS

MICRO = GPTConfig(vocab_size=300, n_layer=2, n_head=2, d_model=32, max_len=16)
START = [5, 6, 7]


@pytest.fixture(scope="module")
def model():
    """Untrained, with weights large enough that some tokens are likelier than others."""
    torch.manual_seed(0)
    model = GPTMini(MICRO).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim == 2:
                parameter.mul_(8)
    return model


def greedy(model, ids, count):
    """Without the cache."""
    ids = list(ids)
    for _ in range(count):
        with torch.inference_mode():
            logits, _ = model(torch.tensor([window(ids, 16)]))
        ids.append(int(logits[0, -1].argmax()))
    return ids[-count:]


logits_of = st.lists(st.integers(-40, 40).map(lambda tenths: tenths / 10), min_size=1, max_size=30).map(torch.tensor)


@given(logits_of, st.floats(0.2, 3), st.none() | st.integers(1, 40), st.none() | st.floats(0.01, 1))
def test_probabilities_are_at_least_0_and_sum_to_1(logits, temperature, top_k, top_p):
    odds = next_token_probabilities(logits, temperature, top_k, top_p)
    assert odds.shape == logits.shape and odds.dtype == torch.float32
    assert (odds >= 0).all() and odds.sum().item() == pytest.approx(1, abs=1e-5)
    assert odds[logits.argmax()] == odds.max()


@given(logits_of, st.floats(0.2, 3))
def test_without_filters_the_odds_are_the_softmax_of_logits_over_temperature(logits, temperature):
    odds = next_token_probabilities(logits, temperature, None, None)
    torch.testing.assert_close(odds, torch.softmax(logits / temperature, -1), atol=1e-6, rtol=1e-4)


@given(logits_of, st.integers(1, 40), st.floats(0.2, 3))
def test_exactly_top_k_stay_and_they_are_the_likeliest(logits, top_k, temperature):
    odds = next_token_probabilities(logits, temperature, top_k)
    kept = odds > 0
    assert kept.sum() == min(top_k, len(logits))
    assert kept.all() or logits[kept].min() >= logits[~kept].max()
    of_kept = torch.softmax(logits[kept] / temperature, -1)
    torch.testing.assert_close(odds[kept], of_kept, atol=1e-6, rtol=1e-4)


def test_of_ties_top_k_keeps_the_first():
    assert next_token_probabilities(torch.zeros(6), 1.0, 2).tolist() == [0.5, 0.5, 0, 0, 0, 0]


@given(logits_of, st.floats(0.01, 1), st.floats(0.2, 3))
def test_top_p_is_the_smallest_set_that_reaches_p(logits, top_p, temperature):
    full = next_token_probabilities(logits, temperature, None)
    odds = next_token_probabilities(logits, temperature, None, top_p)
    kept = odds > 0
    assert kept.any() and (kept.all() or full[kept].min() >= full[~kept].max())
    held = full[kept].sum().item()
    assert held >= top_p - 1e-5, "the set does not reach p"
    assert held - full[kept].min().item() < top_p + 1e-5, "a smaller set would do"
    torch.testing.assert_close(odds[kept], full[kept] / held, atol=1e-6, rtol=1e-4)


def test_top_p_counts_what_top_k_left():
    logits = torch.tensor([0.4, 0.3, 0.2, 0.1]).log()
    # of the two likeliest, the first holds 4/7 = 0.57
    assert next_token_probabilities(logits, 1.0, 2, 0.55).tolist() == [1, 0, 0, 0]
    assert next_token_probabilities(logits, 1.0, 2, 0.6).tolist() == pytest.approx([4 / 7, 3 / 7, 0, 0])


def test_probabilities_of_many_positions_are_those_of_each():
    logits = torch.randn(3, 4, 20, generator=torch.Generator().manual_seed(0))
    before = logits.clone()
    for settings in [(0.0,), (0.8, 5), (0.8, 5, 0.7)]:
        odds = next_token_probabilities(logits, *settings)
        for b in range(3):
            for t in range(4):
                torch.testing.assert_close(odds[b, t], next_token_probabilities(logits[b, t], *settings))
    assert torch.equal(logits, before), "the caller's logits were changed"


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_logits_give_float32_odds(dtype):
    odds = next_token_probabilities(torch.randn(50).to(dtype), 0.8, 10)
    assert odds.dtype == torch.float32 and odds.sum().item() == pytest.approx(1, abs=1e-5)


def test_the_same_seed_tells_the_same_and_others_differ(model):
    told = [list(stream(model, START, 20, seed=seed)) for seed in (1, 1, 2, 3)]
    assert told[0] == told[1]
    assert told[0] != told[2] != told[3]


def test_a_seed_is_all_that_counts_and_leaves_the_global_random_state_alone(model):
    torch.manual_seed(1)
    first = list(stream(model, START, 10, seed=4))
    for seed in (1, 2):
        torch.manual_seed(seed), np.random.seed(seed), random.seed(seed)
        before = torch.get_rng_state(), np.random.get_state()[1].tolist(), random.getstate()
        assert list(stream(model, START, 10, seed=4)) == first
        assert torch.equal(torch.get_rng_state(), before[0])
        assert (np.random.get_state()[1].tolist(), random.getstate()) == before[1:]


def test_without_a_seed_stories_differ(model):
    assert len({tuple(stream(model, START, 20)) for _ in range(3)}) == 3


@pytest.mark.parametrize(
    "settings",
    [{"temperature": 0}, {"temperature": 0, "top_p": 0.5}, {"top_k": 1}, {"top_k": None, "top_p": 1e-9}],
    ids=str,
)
def test_greedy_settings_take_the_likeliest_token(model, settings):
    assert list(stream(model, START, 24, seed=0, **settings)) == greedy(model, START, 24)


def test_a_cooler_draw_is_closer_to_greedy():
    logits = torch.tensor([2.0, 1.0, 0.0])
    likeliest = [next_token_probabilities(logits, t, None)[0].item() for t in (1e-30, 0.5, 1.0, 2.0)]
    assert likeliest == sorted(likeliest, reverse=True) and likeliest[0] == 1


def test_the_stop_id_ends_the_stream_and_is_not_yielded(model):
    told = list(stream(model, START, 20, seed=1))
    stop_id = told[6]
    assert list(stream(model, START, 20, seed=1, stop_id=stop_id)) == told[: told.index(stop_id)]


@pytest.mark.parametrize("count", [0, 1, 40])
def test_no_more_than_max_new_tokens_come(model, count):
    assert len(list(stream(model, START, count, seed=1))) == count


def test_ids_come_one_by_one(model):
    coming = stream(model, START, 10**9, seed=1)
    assert [next(coming) for _ in range(3)] == list(stream(model, START, 3, seed=1))


def test_of_a_prompt_longer_than_max_len_the_last_ids_count(model):
    prompt = [(7 * i) % 300 for i in range(50)]
    told = list(stream(model, prompt, 10, temperature=0))
    assert told == greedy(model, prompt, 10)
    assert told[0] == next(stream(model, window(prompt, 16), 1, temperature=0))


@given(st.integers(1, 9), st.integers(0, 60))
def test_the_window_is_the_end_of_the_text_never_over_max_len_nor_much_under_half_of_it(max_len, length):
    ids = list(range(length))
    seen = window(ids, max_len)
    assert seen == ids[length - len(seen) :]
    assert min(length, max_len - max(1, max_len // 2) + 1) <= len(seen) <= max_len
    if length <= max_len:
        assert seen == ids
    elif len(window(ids[:-1], max_len)) < max_len:
        assert seen == [*window(ids[:-1], max_len), ids[-1]], "between two slides it only grows: the cache holds"


class Counts:
    """How many tokens a model has read in each of its calls."""

    def __init__(self, model, monkeypatch):
        self.read, forward = [], model.forward
        monkeypatch.setattr(model, "forward", lambda ids, **kw: self.read.append(ids.numel()) or forward(ids, **kw))


def test_after_the_prompt_each_token_is_read_alone_and_a_slide_reads_half_a_window(model, monkeypatch):
    counts = Counts(model, monkeypatch)
    list(stream(model, START, 32, seed=1))
    assert counts.read == [3] + [1] * 13 + ([9] + [1] * 7) * 2 + [9, 1]


ragged = st.lists(st.lists(st.integers(0, 299), min_size=1, max_size=20), min_size=1, max_size=5)


@given(ragged, st.integers(0, 30), st.sampled_from([0, 0.8]), st.integers(0, 99))
@given_settings(deadline=None, max_examples=40)
def test_many_at_once_are_told_as_each_alone(model, prompts, count, temperature, seed):
    seeds = range(seed, seed + len(prompts))
    alone = [
        list(stream(model, prompt, count, temperature, seed=one, stop_id=7))
        for prompt, one in zip(prompts, seeds, strict=True)
    ]
    turns = list(stream_many(model, prompts, count, temperature, seeds=seeds, stop_id=7))
    together = [[ids[row] for ids in turns if ids[row] is not None] for row in range(len(prompts))]
    assert together == alone
    assert len(turns) == max(map(len, alone)), "the last turn has something to tell"


def test_stories_that_have_ended_cost_nothing_for_long(model, monkeypatch):
    ends = [list(stream(model, [start], 40, seed=start))[start] for start in range(4)]  # stops the story at that turn
    counts = Counts(model, monkeypatch)
    turns = list(stream_many(model, [[start] for start in range(4)], 14, seeds=range(4), stop_id=ends[0]))
    assert turns[0][0] is None
    assert min(counts.read[1:]) < 4


def test_a_story_that_has_ended_may_have_filled_its_window(model):
    long, short = [(7 * i) % 300 for i in range(15)], [3]
    (first,) = stream(model, long, 1, seed=0)
    turns = list(stream_many(model, [long, short, short], 8, seeds=[0, 1, 2], stop_id=first))
    assert [ids[1] for ids in turns] == list(stream(model, short, 8, seed=1, stop_id=first))


def test_the_odds_of_drawing_are_the_odds():
    odds = torch.tensor([[0.0, 0.5, 0.0, 0.3, 0.2, 0.0], [0, 0, 0, 0, 0, 1.0]])
    random = torch.Generator().manual_seed(0)
    drawn = torch.tensor([draw(odds, [random, None]) for _ in range(4_000)])
    assert (drawn[:, 1] == 5).all()
    shares = torch.bincount(drawn[:, 0], minlength=6) / 4_000
    assert (shares[odds[0] == 0] == 0).all(), "what has no odds was drawn"
    torch.testing.assert_close(shares, odds[0], atol=0.03, rtol=0)


def test_the_prompts_list_is_left_as_it_was(model):
    prompt = list(START)
    list(stream(model, prompt, 5, seed=0))
    assert prompt == START


def test_gradients_are_on_again_between_ids(model):
    for _ in stream(model, START, 2, seed=0):
        assert torch.is_grad_enabled() and not torch.is_inference_mode_enabled()


@pytest.mark.parametrize(
    ("settings", "sentence"),
    [
        ({"temperature": -0.5}, r"temperature is -0\.5; it must be 0"),
        ({"temperature": float("nan")}, "temperature is nan"),
        ({"temperature": float("inf")}, "temperature is inf"),
        ({"top_k": 0}, "top_k is 0; it must be at least 1"),
        ({"top_k": -3}, "top_k is -3"),
        ({"top_p": 0}, "top_p is 0; it must be above 0"),
        ({"top_p": 1.5}, r"top_p is 1\.5"),
        ({"top_p": float("nan")}, "top_p is nan"),
    ],
    ids=str,
)
def test_settings_out_of_range_are_refused_with_their_value(model, settings, sentence):
    with pytest.raises(ValueError, match=sentence):
        list(stream(model, START, 1, **settings))
    with pytest.raises(ValueError, match=sentence):
        next_token_probabilities(torch.zeros(5), **settings)


@pytest.mark.parametrize(("ids", "found"), [([], r"\[\]"), ([5, 300], r"\[5, 300\]"), ([-1], r"\[-1\]")])
def test_ids_out_of_range_are_refused_with_their_values(model, ids, found):
    with pytest.raises(ValueError, match=f"each from 0 to 299; got {found}: is this the model's tokenizer"):
        list(stream(model, ids, 1))


def test_a_told_story_begins_with_its_prompt_and_comes_with_its_settings(model, tokenizer):
    told = tell(model, tokenizer, "Lily found", 12, temperature=0.5, top_k=20, top_p=0.9, seed=3)
    new = list(stream(model, tokenizer.encode("Lily found").ids, 12, 0.5, 20, 0.9, 3, stop_id=0))
    assert told == {
        "prompt": "Lily found",
        "story": "Lily found" + tokenizer.decode(new),
        "ended": len(new) < 12,
        "temperature": 0.5,
        "top_k": 20,
        "top_p": 0.9,
        "seed": 3,
        "max_new_tokens": 12,
    }
    assert generate(model, tokenizer, "Lily found", 12, 0.5, 20, 0.9, seed=3) == told["story"]


def test_an_empty_prompt_starts_as_every_story_does(model, tokenizer):
    end_id = tokenizer.token_to_id(END_OF_TEXT)
    told = tell(model, tokenizer, "", 8, seed=2)
    assert told["story"] == tokenizer.decode(list(stream(model, [end_id], 8, seed=2, stop_id=end_id)))


class AlwaysSays(GPTMini):
    """A model that is sure of one token."""

    def __init__(self, token):
        super().__init__(MICRO)
        self.token = token

    def forward(self, ids, targets=None, cache=None):
        logits, _ = super().forward(ids, cache=cache)
        return torch.nn.functional.one_hot(torch.full(logits.shape[:2], self.token), 300).float() * 100, None


def test_a_story_has_ended_when_the_model_says_so(tokenizer):
    end_id = tokenizer.token_to_id(END_OF_TEXT)
    told = tell(AlwaysSays(end_id), tokenizer, "The end.", 5)
    assert told["ended"] and told["story"] == "The end."
    told = tell(AlwaysSays(tokenizer.token_to_id("a")), tokenizer, "B", 5)
    assert not told["ended"] and told["story"] == "Baaaaa"


def test_the_five_prompts_are_the_chapters():
    assert len(PROMPTS) == 5 and PROMPTS[0] == "Once upon a time" and PROMPTS[4] == "There was a kind"
