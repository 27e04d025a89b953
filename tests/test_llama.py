"""The Llama layout, both ways: what goes out comes back, what others made is read as they read it, what cannot be held is refused by name."""

import json
import math
from dataclasses import replace

import pytest
import torch
from safetensors.torch import load_file, save_file
from tinystories_lab.notebook.telling import tell_in_beats
from tokenizers import SentencePieceBPETokenizer
from tokenizers.processors import TemplateProcessing
from transformers import LlamaConfig, LlamaForCausalLM

from tinystories_lab.checkpoint import load_model
from tinystories_lab.generate import stream, tell
from tinystories_lab.llama import to_llama
from tinystories_lab.model import GPTConfig, GPTMini
from tinystories_lab.odds import bits_per_byte_on, likely_next, odds_of_text
from tinystories_lab.tokenizer import end_id, first_ids, load_tokenizer

SHAPE = GPTConfig(vocab_size=60, n_layer=2, n_head=2, d_model=24, max_len=20)
IDS = torch.arange(3 * 20).view(3, 20)


def write(folder, config=SHAPE):
    """A random GPTMini in Llama's layout below `folder`; returns it."""
    torch.manual_seed(0)
    model = GPTMini(config).eval()
    for parameter in model.parameters():  # norms too, which would all start at 1
        parameter.data += 0.1 * torch.randn_like(parameter)
    settings, tensors = to_llama(config, model.state_dict())
    folder.mkdir(exist_ok=True)
    (folder / "config.json").write_text(json.dumps(settings))
    save_file(tensors, folder / "model.safetensors")
    return model


def change(folder, weights=None, **settings):
    """Other settings and weights in such a folder; None takes a setting out."""
    path = folder / "config.json"
    now = json.loads(path.read_text()) | settings
    path.write_text(json.dumps({name: value for name, value in now.items() if value is not None}))
    if weights is not None:
        tensors = load_file(folder / "model.safetensors")
        save_file(weights(tensors), folder / "model.safetensors")


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"n_layer": 1, "n_head": 1},
        {"n_head": 6, "d_model": 48},
        {"hidden": 40},
        {"norm_eps": 1e-6, "rope_base": 500.0, "tied": False},
    ],
)
def test_what_is_written_in_llamas_layout_comes_back_equal(tmp_path, changes):
    config = replace(SHAPE, **changes)
    model = write(tmp_path / "hf", config)
    back = load_model(tmp_path / "hf")
    assert back.config == config and not back.training
    theirs, ours = back.state_dict(), model.state_dict()
    assert theirs.keys() == ours.keys() and all(torch.equal(theirs[name], ours[name]) for name in ours)


def llama(tmp_path, **changes):
    """A Llama as transformers makes and keeps it."""
    torch.manual_seed(1)
    shape = {"vocab_size": 60, "hidden_size": 24, "num_hidden_layers": 2, "num_attention_heads": 2}
    shape |= {"intermediate_size": 50, "max_position_embeddings": 20, "rms_norm_eps": 1e-5, "initializer_range": 0.3}
    model = LlamaForCausalLM(LlamaConfig(**shape | {"tie_word_embeddings": True} | changes)).eval()
    model.save_pretrained(tmp_path / "theirs")
    return model


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"rms_norm_eps": 0.5, "initializer_range": 0.1},  # so large that another would show
        {"rope_parameters": {"rope_theta": 50.0, "rope_type": "default"}},
        {"tie_word_embeddings": False},
    ],
    ids=["as ours", "another eps", "another base", "a head of its own"],
)
def test_a_llama_that_others_made_gives_the_logits_that_it_gives_there(tmp_path, dtype, changes):
    llama(tmp_path, **changes).to(dtype).save_pretrained(tmp_path / "theirs")
    theirs = LlamaForCausalLM.from_pretrained(tmp_path / "theirs", dtype=torch.float32)
    ours = load_model(tmp_path / "theirs")
    assert ours.config.d_hidden == 50 and ours.tok_emb.weight.dtype == torch.float32
    assert ours.count_parameters() == theirs.num_parameters()
    with torch.no_grad():
        difference = (ours(IDS)[0] - theirs(IDS).logits).abs().max()
        loss = torch.nn.functional.cross_entropy(theirs(IDS).logits.flatten(0, 1), IDS.flatten())
        assert ours(IDS, IDS)[1].item() == pytest.approx(loss.item(), rel=1e-4)
    assert difference < 1e-4


def test_an_output_head_that_equals_the_embedding_is_the_embedding(tmp_path):
    write(tmp_path / "hf")
    change(tmp_path / "hf", lambda tensors: tensors | {"lm_head.weight": tensors["model.embed_tokens.weight"].clone()})
    assert load_model(tmp_path / "hf").config == SHAPE
    change(tmp_path / "hf", tie_word_embeddings=False)
    assert load_model(tmp_path / "hf").config == SHAPE


def test_where_a_config_is_silent_llamas_defaults_count(tmp_path):
    write(tmp_path / "hf", replace(SHAPE, norm_eps=0.5, rope_base=5.0, tied=False))
    change(tmp_path / "hf", rms_norm_eps=None, rope_theta=None, tie_word_embeddings=None, head_dim=None, mlp_bias=None)
    assert load_model(tmp_path / "hf").config == replace(SHAPE, norm_eps=1e-6, tied=False)
    change(tmp_path / "hf", num_key_value_heads=None, rope_scaling={"rope_type": "default"})
    assert load_model(tmp_path / "hf").config == replace(SHAPE, norm_eps=1e-6, tied=False)


@pytest.mark.parametrize(
    ("settings", "named"),
    [
        ({"hidden_act": "gelu"}, "hidden_act is gelu, not silu"),
        ({"num_key_value_heads": 1}, "num_key_value_heads is 1, not 2"),
        ({"head_dim": 8}, "head_dim is 8, not 12"),
        ({"attention_bias": True}, "attention_bias is True, not False"),
        ({"mlp_bias": True}, "mlp_bias is True, not False"),
        ({"rope_scaling": {"rope_type": "linear", "factor": 2.0}}, "rope_type is linear, not default"),
        ({"rope_scaling": {"type": "linear", "factor": 2.0}}, "rope_type is linear, not default"),
        ({"rope_parameters": {"rope_type": "llama3", "factor": 8.0}}, "rope_type is llama3, not default"),
        ({"model_type": "gpt_neo", "num_hidden_layers": None}, "model_type is gpt_neo, not llama"),
        ({"model_type": None}, "model_type is None, not llama"),
        ({"hidden_act": "relu", "mlp_bias": True}, "hidden_act is relu, not silu; mlp_bias is True"),
    ],
)
def test_what_gptmini_cannot_hold_is_refused_by_name(tmp_path, settings, named):
    write(tmp_path / "hf")
    change(tmp_path / "hf", **settings)
    with pytest.raises(ValueError, match=r"GPTMini cannot hold the model in .*hf") as refused:
        load_model(tmp_path / "hf")
    assert named in str(refused.value)


@pytest.mark.parametrize(
    ("weights", "named"),
    [
        (lambda t: t | {"model.layers.1.mlp.up_proj.bias": torch.ones(64)}, "model.layers.1.mlp.up_proj.bias"),
        (lambda t: {name: t[name] for name in t if "layers.1.mlp.up" not in name}, "lacks 'model.layers.1.mlp.up_proj"),
        (lambda t: t | {"model.norm.weight": torch.ones(23)}, "model.norm.weight"),
    ],
)
def test_weights_that_do_not_fit_are_refused_by_name(tmp_path, weights, named):
    write(tmp_path / "hf")
    change(tmp_path / "hf", weights)
    with pytest.raises(ValueError, match=r"hf.*") as refused:
        load_model(tmp_path / "hf")
    assert named in str(refused.value)


def test_a_llama_without_the_head_of_its_own_that_it_should_have_is_refused(tmp_path):
    write(tmp_path / "hf")
    change(tmp_path / "hf", tie_word_embeddings=False)
    with pytest.raises(ValueError, match=r"lacks 'lm_head\.weight'"):
        load_model(tmp_path / "hf")


def test_real_llamas_with_grouped_heads_biases_or_another_activation_are_refused(tmp_path):
    for changes, named in (
        ({"num_key_value_heads": 1}, "num_key_value_heads is 1, not 2"),
        ({"attention_bias": True}, "attention_bias is True"),
        ({"hidden_act": "gelu"}, "hidden_act is gelu"),
    ):
        llama(tmp_path, **changes)
        with pytest.raises(ValueError, match=named):
            load_model(tmp_path / "theirs")


@pytest.mark.parametrize("missing", ["config.json", "model.safetensors"])
def test_a_folder_without_a_model_says_what_is_missing(tmp_path, missing):
    write(tmp_path / "hf")
    (tmp_path / "hf" / missing).unlink()
    with pytest.raises(FileNotFoundError, match=f"there is no .*{missing}"):
        load_model(tmp_path / "hf")


@pytest.mark.parametrize("name", ["config.json", "model.safetensors"])
def test_a_torn_file_is_not_read(tmp_path, name):
    write(tmp_path / "hf")
    content = (tmp_path / "hf" / name).read_bytes()
    for torn in (content[:-9], b"[]"):
        (tmp_path / "hf" / name).write_bytes(torn)
        with pytest.raises(ValueError, match="holds no Llama that can be read"):
            load_model(tmp_path / "hf")


@pytest.fixture(scope="module")
def guest(tmp_path_factory):
    """Somebody else's model as it comes: SentencePiece-like tokens, a mark before every text, another width."""
    folder = tmp_path_factory.mktemp("guest")
    tokenizer = SentencePieceBPETokenizer(add_prefix_space=True)
    marks = ["<unk>", "<s>", "</s>"]
    tokenizer.train_from_iterator(["Once upon a time, there was a cat."] * 3, 60, 1, special_tokens=marks)
    tokenizer.post_processor = TemplateProcessing(single="<s> $A", pair="<s> $A $B", special_tokens=[("<s>", 1)])
    tokenizer.save(str(folder / "tokenizer.json"))
    llama(folder, vocab_size=tokenizer.get_vocab_size())
    return load_model(folder / "theirs"), load_tokenizer(folder / "tokenizer.json")


def test_a_guest_tells_stories_with_their_spaces_from_its_own_first_token(guest):
    model, tokenizer = guest
    told = tell(model, tokenizer, "Once upon", 8, seed=1)
    ids = [*tokenizer.encode("Once upon").ids, *stream(model, tokenizer.encode("Once upon").ids, 8, seed=1, stop_id=2)]
    assert told["story"] == tokenizer.decode(ids) and told["story"].startswith("Once upon")
    assert first_ids(tokenizer, "") == [1] and tell(model, tokenizer, "", 3, seed=1)["story"]
    *_, told = tell_in_beats(model, tokenizer, "Once upon", 8, beat=60, seed=1)
    assert list(told.ids) in (ids, [*ids, 2]), "the playground tells the same"


def test_a_guests_odds_are_of_its_own_tokens(guest):
    model, tokenizer = guest
    odds = odds_of_text(model, tokenizer, "Once upon a time")
    assert "".join(text for text, _ in odds) == " Once upon a time"
    ids = tokenizer.encode("Once upon a time").ids
    assert ids[0] == 1
    with torch.no_grad():
        own = model(torch.tensor([ids]))[0][0].softmax(-1)[:-1].gather(1, torch.tensor(ids[1:])[:, None])[:, 0]
    assert [share for _, share in odds] == pytest.approx(own.tolist(), rel=1e-4)
    assert all(shown.startswith("'") for shown, *_ in likely_next(model, tokenizer, ids))


def test_bits_a_byte_on_the_same_texts_compare_models_with_other_tokenizers(guest):
    model, tokenizer = guest
    texts = ["Once upon a time", "there was a cat"]
    shares = [share for text in texts for _, share in odds_of_text(model, tokenizer, text)]
    expected = -sum(math.log2(share) for share in shares) / sum(map(len, texts))
    assert bits_per_byte_on(model, tokenizer, texts) == pytest.approx(expected)
    beyond = "cat " * 40
    seen = tokenizer.decode(tokenizer.encode(beyond, add_special_tokens=False).ids[:20])
    assert bits_per_byte_on(model, tokenizer, [beyond]) == pytest.approx(bits_per_byte_on(model, tokenizer, [seen]))


def test_a_tokenizer_without_a_mark_between_stories_is_refused():
    with pytest.raises(ValueError, match=r"none of <\|endoftext\|>, </s>, .* to end a story with"):
        end_id(SentencePieceBPETokenizer())
