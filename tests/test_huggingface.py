"""A model gives the same logits, tokens and stories in transformers as here, in both directions."""

import json
import math
import re
import shutil
import struct
from dataclasses import asdict, replace
from html import unescape
from itertools import pairwise
from pathlib import Path

import gguf
import numpy as np
import pytest
import torch
import yaml
from huggingface_hub import ModelCard
from safetensors.torch import load_file, save_file
from tokenizers import SentencePieceBPETokenizer, Tokenizer
from tokenizers.processors import TemplateProcessing
from torch.func import functional_call
from transformers import AutoTokenizer, LlamaConfig, LlamaForCausalLM, pipeline

from tinystories_lab.analysis.evaluation import perplexity, run_results, save_samples
from tinystories_lab.analysis.next_token import text_bits_per_byte, token_probabilities, token_text, top_next_tokens
from tinystories_lab.checkpoint import load_checkpoint, load_model, save_checkpoint
from tinystories_lab.data.text import PROMPTS
from tinystories_lab.files import read_rows
from tinystories_lab.generate import generate, generate_samples, stream
from tinystories_lab.integrations.huggingface import export_hugging_face, load_llama, load_llama_tokenizer
from tinystories_lab.integrations.llama2c import load_llama2c, load_llama2c_tokenizer
from tinystories_lab.model import GPTConfig, new_model
from tinystories_lab.notebook.playground import story_playground
from tinystories_lab.run import save_config
from tinystories_lab.tokenizer import encode_prompt, eos_id, save_tokenizer, train_tokenizer

CONFIG = GPTConfig(vocab_size=300, n_layer=2, n_head=4, d_model=64, max_len=64)
IDS = torch.randint(300, (3, 64), generator=torch.Generator().manual_seed(0))
FILES = {"config.json", "generation_config.json", "model.safetensors", "tokenizer.json", "tokenizer_config.json"}
FILES |= {"README.md"}
LAYER = "self_attn.q self_attn.k self_attn.v mlp.gate mlp.up"
OLD = Path(__file__).with_name("data") / "version-1.0"


def write_final(run_dir, config):
    """Write a final.pt whose weights, norms included, are so large that a mistake in the layout changes the logits."""
    model, generator = new_model(config), torch.Generator().manual_seed(1)
    for parameter in model.parameters():
        parameter.data += 0.2 * torch.randn(parameter.shape, generator=generator)
    model.tok_emb.weight.data[0] *= 2  # so that some stories end
    checkpoint = load_checkpoint(run_dir / "last.pt") | {"model_config": asdict(config), "model": model.state_dict()}
    save_checkpoint(run_dir / "final.pt", checkpoint | {"optimizer": {"state": {}}})
    return run_dir


@pytest.fixture(scope="module")
def run_dir(lab, uninterrupted, tokenizer, tmp_path_factory):
    """A finished run with such a final.pt and four samples."""
    home = tmp_path_factory.mktemp("home")
    plan = lab(shutil.copytree(uninterrupted(), home / "runs" / "a run"))
    save_config(replace(plan, source=str(home / "made_up.txt"), preset=replace(plan.preset, model=CONFIG)))
    model = load_model(write_final(plan.run_dir, CONFIG) / "final.pt")
    samples = generate_samples(model, tokenizer, 12, PROMPTS)[:4]
    samples[0]["story"] += "{{ 7 * 7 }}\n---\n| <b>"
    save_samples(plan.run_dir, "before", [samples[0] | {"story": "x x"}])
    save_samples(plan.run_dir, "after", samples)
    return plan.run_dir


@pytest.fixture(scope="module")
def folder(run_dir, tmp_path_factory):
    """The exported folder, far from its run. Copy it before changing anything."""
    return export_hugging_face(run_dir, tmp_path_factory.mktemp("far away") / "model")


@pytest.fixture(scope="module")
def models(run_dir, folder):
    """The same model here and in transformers, in float64: sums in float32 differ between processors."""
    return load_model(run_dir / "final.pt").double(), LlamaForCausalLM.from_pretrained(folder).double()


@torch.no_grad()
def difference(ours, theirs, ids=IDS, weights=None):
    """Return the largest difference of the logits. It is 1e-5: transformers computes norms and angles in float32."""
    return (ours(ids)[0] - functional_call(theirs, weights or {}, (ids,)).logits).abs().max().item()


def greedy(model, ids, stop_id):
    """Return the likeliest continuation. No rounding can change it: at each step the second token is far behind."""
    new = list(stream(model.float(), ids, 30, temperature=0, stop_id=stop_id))
    with torch.no_grad():
        top = model.double()(torch.tensor([ids + new]))[0][0, len(ids) - 1 :].topk(2).values
    assert (top[:, 0] - top[:, 1]).min() > 0.01, "choose another prompt"
    return new


def change(folder, tmp_path, weights=lambda tensors: tensors, **settings):
    """Return a copy of an exported folder with such changes to its weights and settings; None removes a setting."""
    copy = shutil.copytree(folder, tmp_path / "hf", dirs_exist_ok=True)
    changed = json.loads((folder / "config.json").read_text()) | settings
    (copy / "config.json").write_text(json.dumps({name: it for name, it in changed.items() if it is not None}))
    save_file(weights(load_file(folder / "model.safetensors")), copy / "model.safetensors")
    return copy


def llama(folder, dtype=torch.float32, **changes):
    """Return a Llama that transformers made and saved."""
    torch.manual_seed(1)
    shape = {"vocab_size": 300, "hidden_size": 24, "num_hidden_layers": 2, "num_attention_heads": 2}
    shape |= {"intermediate_size": 50, "max_position_embeddings": 64, "rms_norm_eps": 1e-5, "initializer_range": 0.3}
    made = LlamaForCausalLM(LlamaConfig(**shape | {"tie_word_embeddings": True} | changes))
    made.to(dtype).save_pretrained(folder)
    return LlamaForCausalLM.from_pretrained(folder, dtype=torch.float32).double()


def test_transformers_gives_the_same_logits_and_a_mistake_in_the_layout_would_show(models):
    for length in (1, 2, 63, 64):
        assert difference(*models, IDS[:, :length]) < 0.01
    weights = {name.removeprefix("model.layers.0."): (name, it) for name, it in models[1].state_dict().items()}
    q, k, v, gate, up = (weights[f"{name}_proj.weight"] for name in LAYER.split())
    norms = weights["input_layernorm.weight"], weights["post_attention_layernorm.weight"]
    for one, other in ((q, k), (k, v), (gate, up), norms):
        assert difference(*models, weights={one[0]: other[1], other[0]: one[1]}) > 1, (one[0], other[0])
    interleaved = (
        q[1].view(4, 2, 8, 64).transpose(1, 2).reshape(64, 64)
    )  # rotary pairs (2i, 2i + 1), as in Meta's Llama
    assert difference(*models, weights={q[0]: interleaved}) > 1


def test_the_pipeline_generates_the_same_greedy_story_from_the_folder_alone(models, folder, tokenizer):
    generator, ended, eos = pipeline("text-generation", str(folder)), set(), eos_id(tokenizer)
    for prompt in ("Lily found a", "Ben", "The little dog wanted"):
        ids = tokenizer.encode(prompt).ids
        new = greedy(models[0], ids, eos)
        (row,) = generator(prompt, max_new_tokens=30, do_sample=False, return_tensors=True)
        assert row["generated_token_ids"] == ids + new + [eos] * (len(new) < 30)
        ended.add(len(new) < 30)
    assert ended == {True, False}
    settings = generator.model.generation_config
    assert (settings.do_sample, settings.temperature, settings.top_k) == (True, 0.8, 50), "those of the lab"
    assert generator("Ben")[0]["generated_text"].startswith("Ben")


@torch.no_grad()
def test_a_batch_of_prompts_gives_the_stories_and_logits_of_each_prompt_alone(models, folder, tokenizer):
    theirs, prompts = (
        AutoTokenizer.from_pretrained(folder),
        ["Lily found a", "Ben", "The little dog wanted", "Ben found a red"],
    )
    settings = {"max_new_tokens": 30, "do_sample": False}
    batch = theirs(prompts, padding=True, return_tensors="pt")
    assert set(batch) == {"input_ids", "attention_mask"} and not batch["attention_mask"][:, 0].all(), "padded left"
    together = theirs.batch_decode(models[1].generate(**batch, **settings), skip_special_tokens=True)
    for prompt, text in zip(prompts, together, strict=True):
        ids = tokenizer.encode(prompt).ids
        assert text == tokenizer.decode(ids + greedy(models[0], ids, eos_id(tokenizer)))
        alone = models[1].generate(**theirs(prompt, return_tensors="pt"), **settings)[0]
        assert text == theirs.decode(alone, skip_special_tokens=True)
    theirs.padding_side = "right"
    batch = theirs(prompts, padding=True, return_tensors="pt")
    for prompt, logits in zip(prompts, models[1](**batch).logits, strict=True):
        alone = models[1](**theirs(prompt, return_tensors="pt")).logits[0]
        assert (logits[: len(alone)] - alone).abs().max() < 1e-4


def test_any_text_has_the_same_tokens_in_transformers_and_comes_back(models, tokenizer, folder):
    theirs, eos = AutoTokenizer.from_pretrained(folder), eos_id(tokenizer)
    for text in ("", " two  spaces", "naïve 🐉 猫\n\ttab", "A. <|endoftext|> B. <|pad|>", *PROMPTS):
        ids = theirs(text).input_ids
        assert ids == tokenizer.encode(text).ids and theirs.decode(ids) == text
    for holder in (theirs, models[1].config, models[1].generation_config):
        assert (holder.bos_token_id, holder.eos_token_id, holder.pad_token_id) == (eos, eos, 1)
    assert theirs.model_max_length == models[1].config.max_position_embeddings == 64


def test_the_shared_embedding_is_stored_once(models, folder):
    ours, theirs = models
    sizes = {name: tensor.numel() for name, tensor in load_file(folder / "model.safetensors").items()}
    assert sum(sizes.values()) == ours.count_parameters() == theirs.num_parameters() and "lm_head.weight" not in sizes
    assert theirs.lm_head.weight.data_ptr() == theirs.model.embed_tokens.weight.data_ptr()


def test_gguf_has_a_name_for_every_weight_and_finds_merges_and_special_tokens(folder, tokenizer):
    known = gguf.get_tensor_name_map(gguf.MODEL_ARCH.LLAMA, 2)
    mapped = {known.get_name(name, try_suffixes=(".weight",)) for name in load_file(folder / "model.safetensors")}
    parts = ("attn_norm", "attn_q", "attn_k", "attn_v", "attn_output", "ffn_norm", "ffn_gate", "ffn_up", "ffn_down")
    in_layers = {f"blk.{layer}.{part}.weight" for layer in range(2) for part in parts}
    assert mapped == {"token_embd.weight", "output_norm.weight"} | in_layers
    special = gguf.SpecialVocab(folder, load_merges=True)
    assert special.special_token_ids == {"bos": 0, "eos": 0, "pad": 1} and special.add_special_token["bos"] is False
    assert len(special.merges) == tokenizer.get_vocab_size() - 258
    needed = "max_position_embeddings hidden_size intermediate_size num_attention_heads num_key_value_heads vocab_size "
    needed += "num_hidden_layers rms_norm_eps rope_theta"  # by llama.cpp's converter
    assert json.loads((folder / "config.json").read_text()).keys() >= set(needed.split())


def test_an_exported_model_loads_as_the_same_model_also_from_a_run_of_version_1_0(run_dir, tmp_path):
    other = {"n_head": 6, "d_model": 48, "hidden": 40, "norm_eps": 1e-6, "rope_base": 500.0, "tie_embeddings": False}
    runs = {
        name: write_final(shutil.copytree(run_dir, tmp_path / name), replace(CONFIG, **changes))
        for name, changes in {"same": {}, "smallest": {"n_layer": 1, "n_head": 1}, "other": other}.items()
    }
    runs["old"] = shutil.copytree(OLD / "run", tmp_path / "old")
    shutil.copytree(OLD / "finished", runs["old"], dirs_exist_ok=True)
    for name, run in runs.items():
        model, loaded = load_model(run / "final.pt"), load_llama(export_hugging_face(run, run / "hf"))
        assert loaded.config == model.config and not loaded.training, name
        weights = model.state_dict()
        assert loaded.state_dict().keys() == weights.keys()
        assert all(torch.equal(weight, weights[key]) for key, weight in loaded.state_dict().items()), name


OTHER_LLAMA = {
    "rms_norm_eps": 0.5,
    "rope_parameters": {"rope_theta": 50.0, "rope_type": "default"},
}  # another would show


@pytest.mark.parametrize(
    ("dtype", "changes"), [(torch.bfloat16, {}), (torch.float32, OTHER_LLAMA | {"tie_word_embeddings": False})]
)
def test_a_llama_from_elsewhere_gives_the_logits_that_it_gives_in_transformers(tmp_path, dtype, changes):
    theirs, ours = llama(tmp_path, dtype, **changes), load_llama(tmp_path)
    assert ours.config.d_hidden == 50 and ours.tok_emb.weight.dtype == torch.float32
    assert ours.count_parameters() == theirs.num_parameters()
    assert difference(ours.double(), theirs) < 0.01
    with torch.no_grad():
        loss = torch.nn.functional.cross_entropy(theirs(IDS).logits.flatten(0, 1), IDS.flatten())
        assert ours(IDS, IDS)[1].item() == pytest.approx(loss.item(), rel=0.01)


@pytest.mark.parametrize(
    ("heads", "kv_heads", "width", "settings"),
    [
        (8, 4, 64, {"num_hidden_layers": 5, "vocab_size": 512}),  # llama2.c's stories260K
        (9, 3, 72, {"rope_parameters": {"rope_theta": 1e5, "rope_type": "default"}, "head_dim": 8}),  # SmolLM2's ratio
        (4, 1, 32, {"tie_word_embeddings": False}),
    ],
)
def test_query_heads_that_share_key_value_heads_give_the_logits_and_tokens_of_transformers(
    tmp_path, heads, kv_heads, width, settings
):
    shape = {"hidden_size": width, "num_attention_heads": heads, "num_key_value_heads": kv_heads}
    theirs, ours = llama(tmp_path, **shape | settings), load_llama(tmp_path).double()
    assert difference(ours, theirs) < 1e-4
    repeated = 2 * (heads - kv_heads) * width * width // heads  # the rows of keys and values that are added in a layer
    assert ours.count_parameters() == theirs.num_parameters() + ours.config.n_layer * repeated
    prompt = IDS[1, :3].tolist()
    made = theirs.generate(torch.tensor([prompt]), max_new_tokens=30, do_sample=False, eos_token_id=None)
    assert made[0].tolist() == prompt + greedy(ours, prompt, stop_id=None)


@pytest.mark.parametrize("suffix", ["safetensors", "bin"])
def test_weights_in_several_files_or_in_half_precision_are_those_of_one_file(tmp_path, suffix):
    llama(tmp_path, torch.float16, num_key_value_heads=1, tie_word_embeddings=False)
    one, tensors = load_llama(tmp_path), load_file(tmp_path / "model.safetensors")
    (tmp_path / "model.safetensors").unlink()
    for part in range(3):
        names = sorted(tensors)[part::3]
        stem, write = ("model", save_file) if suffix == "safetensors" else ("pytorch_model", torch.save)
        path = tmp_path / f"{stem}-0000{part + 1}-of-00003.{suffix}"
        write({name: tensors[name] for name in names}, path)
    several = load_llama(tmp_path)
    assert several.config == one.config and several.tok_emb.weight.dtype == torch.float32
    weights = one.state_dict()
    assert all(torch.equal(weight, weights[key]) for key, weight in several.state_dict().items())
    path.unlink()
    with pytest.raises(ValueError, match=f"lacks '({'|'.join(names)})'"):
        load_llama(tmp_path)
    path.write_bytes(b"damaged")
    with pytest.raises(ValueError, match="has no readable Llama"):
        load_llama(tmp_path)


def test_an_output_head_that_equals_the_embedding_is_the_embedding(folder, tmp_path):
    for settings in ({}, {"tie_word_embeddings": False}):
        head = lambda tensors: tensors | {"lm_head.weight": tensors["model.embed_tokens.weight"].clone()}  # noqa: E731
        assert load_llama(change(folder, tmp_path, head, **settings)).config == CONFIG


def test_settings_that_a_config_lacks_have_the_defaults_of_llama(run_dir, tmp_path):
    config = replace(CONFIG, norm_eps=0.5, rope_base=5.0, tie_embeddings=False)
    folder = export_hugging_face(write_final(shutil.copytree(run_dir, tmp_path / "run"), config), tmp_path / "export")
    names = ("rms_norm_eps", "rope_theta", "tie_word_embeddings", "head_dim", "mlp_bias", "num_key_value_heads")
    for rope in (None, {"rope_type": "default"}):
        copy = change(folder, tmp_path, **dict.fromkeys(names), rope_scaling=rope)
        assert load_llama(copy).config == replace(CONFIG, norm_eps=1e-6, tie_embeddings=False)


def test_a_model_that_gptmini_does_not_support_is_refused_and_all_reasons_are_named(folder, tmp_path):
    several = {"hidden_act": "gelu", "num_key_value_heads": 3, "head_dim": 8, "attention_bias": True, "mlp_bias": True}
    reasons = "hidden_act is gelu, not silu; num_key_value_heads is 3, not a divisor of 4; head_dim is 8, not 16; "
    for settings, named in (
        (several, reasons + "attention_bias is True, not False; mlp_bias is True, not False; choose another"),
        ({"num_key_value_heads": 0}, "num_key_value_heads is 0, not a divisor of 4"),
        ({"quantization_config": {"load_in_8bit": True}}, "quantization_config is {'load_in_8bit': True}, not None"),
        ({"rope_scaling": {"rope_type": "linear", "factor": 2.0}}, "rope_type is linear, not default"),
        ({"rope_scaling": {"type": "linear", "factor": 2.0}}, "rope_type is linear, not default"),
        ({"rope_parameters": {"rope_type": "llama3", "factor": 8.0}}, "rope_type is llama3, not default"),
        ({"model_type": "gpt_neo", "num_hidden_layers": None}, "model_type is gpt_neo, not llama"),
        ({"model_type": None}, "model_type is None, not llama"),
    ):
        with pytest.raises(ValueError, match=r"GPTMini does not support the model in .*hf: ") as refused:
            load_llama(change(folder, tmp_path, **settings))
        assert named in str(refused.value)
    llama(tmp_path, num_key_value_heads=1, attention_bias=True, hidden_act="gelu")
    with pytest.raises(ValueError, match=r"act is gelu, .*attention_bias is True, .*q_proj\.bias"):
        load_llama(tmp_path)


def test_weights_that_do_not_fit_are_refused_by_name(folder, tmp_path):
    for weights, settings, named in (
        (lambda t: t | {"model.layers.1.mlp.up_proj.bias": torch.ones(176)}, {}, "model.layers.1.mlp.up_proj.bias"),
        (lambda t: {name: t[name] for name in t if "1.mlp.up" not in name}, {}, "lacks 'model.layers.1.mlp.up_proj"),
        (lambda t: t | {"model.norm.weight": torch.ones(63)}, {}, "['model.norm.weight'] (63,)"),
        (lambda t: t, {"num_key_value_heads": 2}, "['model.layers.0.self_attn.k_proj.weight'] (64, 64)"),
        (lambda t: t, {"tie_word_embeddings": False}, "lacks 'lm_head.weight'"),
    ):
        with pytest.raises(ValueError, match="hf") as refused:
            load_llama(change(folder, tmp_path, weights, **settings))
        assert named in str(refused.value)


@pytest.mark.parametrize("name", ["config.json", "model.safetensors"])
def test_a_missing_or_damaged_file_is_named(folder, tmp_path, name):
    path = shutil.copytree(folder, tmp_path / "hf") / name
    content = path.read_bytes()
    for damaged in (content[:-9], b"[]"):
        path.write_bytes(damaged)
        with pytest.raises(ValueError, match="hf has no readable Llama"):
            load_llama(path.parent)
    path.unlink()
    with pytest.raises(FileNotFoundError, match=f"there is no .*{name}"):
        load_llama(path.parent)


def test_a_guest_that_is_no_folder_here_is_refused_with_the_way_to_download_it(folder, tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    for guest, name in (("ada/llama", "ada/llama"), ("gest", "owner/name"), ("~/gest", "owner/name")):
        with pytest.raises(
            FileNotFoundError, match=rf"no folder .*: .*run `hf download {name} --local-dir guest` first"
        ):
            load_llama(guest)
    copy = shutil.copytree(folder, tmp_path / "guest")
    assert load_llama("~/guest").config == CONFIG and load_llama_tokenizer("~/guest")
    for content, error in (("{", ValueError), (None, FileNotFoundError)):
        (copy / "tokenizer.json").write_text(content) if content else (copy / "tokenizer.json").unlink()
        with pytest.raises(error, match=r"no readable .*tokenizer\.json: save the model's tokenizer there") as refused:
            load_llama_tokenizer(copy)
        assert "02_tokenizer" not in str(refused.value), "that one writes the tokenizer of another model"


def test_the_card_states_what_the_files_of_the_run_state(run_dir, folder):
    card, run = ModelCard.load(folder / "README.md"), run_results(run_dir)
    metadata = {"license": "other", "library_name": "transformers", "pipeline_tag": "text-generation"}
    assert card.data.to_dict() == metadata
    for expected in (
        f"has {run['parameters']:,} parameters",
        f"| {run['loss']:.3f} nats per token, a perplexity of {perplexity(run['loss']):.2f} |",
        f"| {run['bits per byte']:#.3g} |",
        f"| {run['tokens read']:,} |",
        "| 12 of 4 x 16 tokens, adamw |",
        "seeds 0, 1, 2.",
        "made_up.txt",
        "A prompt must not end in a space",
        "their owners",
    ):
        assert expected in card.text, expected
    stories = [row["story"] for row in read_rows(run_dir / "samples.jsonl") if row["when"] == "after"]
    assert all(f"````text\n{story}" in card.text for story in stories[:3]) and stories[3] not in card.text
    assert str(run_dir.parents[1]) not in card.text, "readers on the Hub need not know the author's folders"


@pytest.mark.parametrize(("source", "licence"), [("tinystories", "cdla-sharing-1.0"), ("toyland", "mit")])
def test_the_card_names_the_licence_of_known_data(run_dir, tmp_path, source, licence):
    run = shutil.copytree(run_dir, tmp_path / "runs" / "copy")
    config = yaml.safe_load((run / "config.yaml").read_text()) | {"source": source}
    (run / "config.yaml").write_text(yaml.safe_dump(config))
    (run / "samples.jsonl").unlink()
    card = ModelCard.load(export_hugging_face(run, tmp_path) / "README.md")
    assert (card.data.license, card.data.language) == (licence, "en") and "No stories were saved" in card.text
    if source == "tinystories":
        assert card.data.datasets == ["roneneldan/TinyStories"] and "CDLA-Sharing-1.0" in card.text


def test_an_export_replaces_its_own_files_and_keeps_others(run_dir, folder, tmp_path):
    assert {path.name for path in folder.iterdir()} == FILES
    (tmp_path / "notes.txt").write_text("mine")
    (tmp_path / "config.json").write_text("old")
    export_hugging_face(run_dir, tmp_path)
    assert {path.name for path in tmp_path.iterdir()} == FILES | {"notes.txt"}
    assert (tmp_path / "config.json").read_bytes() == (folder / "config.json").read_bytes()


def test_another_tokenizer_or_an_unfinished_run_is_refused_and_nothing_is_written(run_dir, tmp_path):
    run = shutil.copytree(run_dir, tmp_path / "run")
    save_tokenizer(train_tokenizer(["other stories than those"], 270), run / "tokenizer.json")
    with pytest.raises(ValueError, match=r"tokenizer\.json is not the tokenizer that .*final\.pt was trained with"):
        export_hugging_face(run, tmp_path / "out")
    (run / "final.pt").unlink()
    with pytest.raises(FileNotFoundError, match=r"final\.pt"):
        export_hugging_face(run, tmp_path / "out")
    assert not (tmp_path / "out").exists()


@pytest.fixture(scope="module")
def guest(tmp_path_factory, stories):
    """Somebody else's model: tokens in the manner of SentencePiece, a mark before every text, another width."""
    folder = tmp_path_factory.mktemp("guest")
    tokenizer = SentencePieceBPETokenizer(add_prefix_space=True)
    marks = ["<unk>", "<s>", "</s>"]
    texts = ["Once upon a time, there was a cat.", *stories]
    tokenizer.train_from_iterator(texts, 100, 1, special_tokens=marks)
    tokenizer.post_processor = TemplateProcessing(single="<s> $A", pair="<s> $A $B", special_tokens=[("<s>", 1)])
    tokenizer.save(str(folder / "tokenizer.json"))
    llama(folder, vocab_size=tokenizer.get_vocab_size(), max_position_embeddings=20)
    return load_llama(folder), load_llama_tokenizer(folder)


def test_a_guest_generates_stories_with_their_spaces_from_its_own_first_token(guest):
    model, tokenizer = guest
    prompt = tokenizer.encode("Once upon").ids
    ids = [*prompt, *stream(model, prompt, 8, seed=1, stop_id=2)]
    story = generate(model, tokenizer, "Once upon", 8, seed=1)
    assert story == tokenizer.decode(ids) and story.startswith("Once upon")
    assert encode_prompt(tokenizer, "") == [1] and generate(model, tokenizer, "", 3, seed=1)
    boxes = [story_playground(model, tokenizer, ["Once upon"])]
    for box in boxes:
        boxes += getattr(box, "children", ())
    (shown,) = (unescape(re.sub("<.*?>", "", box.value)) for box in boxes if "playground-story" in box._dom_classes)
    ids = [*prompt, *stream(model, prompt, 120, seed=0, stop_id=2)]
    same = "".join(token_text(tokenizer, token) for token in ids)
    assert shown.removesuffix("</s>") == same, "the playground generates the same story"


def test_a_guests_probabilities_are_those_of_its_own_tokens(guest):
    model, tokenizer = guest
    found = token_probabilities(model, tokenizer, "Once upon a time")
    assert "".join(text for text, _ in found) == " Once upon a time"
    ids = tokenizer.encode("Once upon a time").ids
    assert ids[0] == 1
    with torch.no_grad():
        own = model(torch.tensor([ids]))[0][0].softmax(-1)[:-1].gather(1, torch.tensor(ids[1:])[:, None])[:, 0]
    assert [probability for _, probability in found] == pytest.approx(own.tolist(), rel=0.01)
    assert all(text.startswith("'") for text, *_ in top_next_tokens(model, tokenizer, ids))


def test_bits_per_byte_on_the_same_texts_compare_models_with_other_tokenizers(guest):
    model, tokenizer = guest
    texts = ["Once upon a time", "there was a cat"]
    probabilities = [p for text in texts for _, p in token_probabilities(model, tokenizer, text)]
    expected = -sum(map(math.log2, probabilities)) / sum(map(len, texts))
    assert text_bits_per_byte(model, tokenizer, texts) == pytest.approx(expected)
    beyond = "cat " * 40
    seen = tokenizer.decode(tokenizer.encode(beyond, add_special_tokens=False).ids[:20])
    assert text_bits_per_byte(model, tokenizer, [beyond]) == pytest.approx(text_bits_per_byte(model, tokenizer, [seen]))


@pytest.mark.parametrize("adds_bos", [True, False])
def test_a_guests_prompts_start_with_the_token_that_they_start_with_in_transformers(tmp_path, guest, adds_bos):
    special = {"bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>", "add_bos_token": not adds_bos}
    (tmp_path / "tokenizer_config.json").write_text(json.dumps(special | {"tokenizer_class": "LlamaTokenizerFast"}))
    tokenizer = Tokenizer.from_str(guest[1].to_str())
    if not adds_bos:
        tokenizer.post_processor = TemplateProcessing(single="$A", special_tokens=[])
    tokenizer.save(str(tmp_path / "tokenizer.json"))
    ours, theirs = load_llama_tokenizer(tmp_path), AutoTokenizer.from_pretrained(tmp_path)
    ids = encode_prompt(ours, "Once upon")
    assert ids == theirs("Once upon").input_ids and (ids[0] == 1) == adds_bos


def rotate_pairs(x):
    """Rotate the pairs (2i, 2i + 1) of x (T, D) by their positions' angles, as complex numbers."""
    T, D = x.shape
    turns = torch.polar(
        torch.ones(()).double(), torch.arange(T)[:, None] / 10_000 ** (torch.arange(0, D, 2) / D).double()
    )
    return torch.view_as_real(torch.view_as_complex(x.view(T, D // 2, 2)) * turns).flatten(1)


def llama2c_logits(weights, layers, heads, kv_heads, ids):
    """Return the logits (T, V) as llama2.c computes them: one head and one token at a time, pairs beside each other."""
    norm = lambda x, scale: x / (x.square().mean(-1, keepdim=True) + 1e-5).sqrt() * scale  # noqa: E731
    embed, *stacked, last, head = weights
    x = embed[ids]
    for attention, wq, wk, wv, wo, ffn, w1, w2, w3 in (tuple(it[layer] for it in stacked) for layer in range(layers)):
        h = norm(x, attention)
        qs, ks, vs = (h @ it.T for it in (wq, wk, wv))
        D, joined = qs.shape[1] // heads, []
        for one in range(heads):
            shared = one * kv_heads // heads
            q = rotate_pairs(qs[:, one * D : one * D + D])
            k, v = rotate_pairs(ks[:, shared * D : shared * D + D]), vs[:, shared * D : shared * D + D]
            rows = [(q[t] @ k[: t + 1].T / D**0.5).softmax(-1) @ v[: t + 1] for t in range(len(ids))]
            joined.append(torch.stack(rows))
        x = x + torch.cat(joined, dim=1) @ wo.T
        h = norm(x, ffn)
        gate = h @ w1.T
        x = x + (gate * gate.sigmoid() * (h @ w3.T)) @ w2.T
    return norm(x, last) @ head.T


@pytest.mark.parametrize(("kv_heads", "shared_head"), [(4, True), (2, False), (1, True)])
def test_a_model_of_llama2c_gives_the_logits_of_its_own_layout(tmp_path, kv_heads, shared_head):
    C, hidden, layers, heads, vocab, max_len = 32, 40, 2, 4, 50, 16
    kv, generator = C // heads * kv_heads, torch.Generator().manual_seed(1)
    shapes = [(vocab, C), (layers, C), (layers, C, C), (layers, kv, C), (layers, kv, C), (layers, C, C), (layers, C)]
    shapes += [(layers, hidden, C), (layers, C, hidden), (layers, hidden, C), (C,), (vocab, C)]
    weights = [
        0.4 * torch.randn(shape, generator=generator) + (shape[-1:] == shape[1:] or len(shape) == 1) for shape in shapes
    ]
    tables = torch.randn(max_len, C // heads)  # llama2.c ignores them as well
    stored = [*weights[:-1], tables] + ([] if shared_head else weights[-1:])
    header = struct.pack("<7i", C, hidden, layers, heads, kv_heads, vocab if shared_head else -vocab, max_len)
    path = tmp_path / "stories.bin"
    path.write_bytes(header + b"".join(it.numpy().tobytes() for it in stored))
    model, ids = load_llama2c(path), torch.randint(vocab, (max_len,), generator=generator)
    assert (model.config.tie_embeddings, model.config.max_len, model.training) == (shared_head, max_len, False)
    weights[-1] = weights[0] if shared_head else weights[-1]
    expected = llama2c_logits([it.double() for it in weights], layers, heads, kv_heads, ids)
    with torch.no_grad():
        assert (model.double()(ids[None])[0][0] - expected).abs().max() < 1e-4
    for damaged, named in (
        (path.read_bytes()[:-4], "weights, and its header requires"),
        (header[:20], "unpack requires"),
        (struct.pack("<Ii", 0x616B3432, 1) + header, "d_model is 1"),  # the mark of the later formats
        (struct.pack("<7i", C, hidden, layers, heads, 3, vocab, max_len), "4 query heads cannot share 3"),
    ):
        path.write_bytes(damaged)
        with pytest.raises(ValueError, match=rf"stories\.bin is not a model in llama2\.c's first format .*{named}"):
            load_llama2c(path)
    for load in (load_llama2c, load_llama2c_tokenizer):
        with pytest.raises(FileNotFoundError, match=r"there is no .*none\.bin: download it"):
            load(tmp_path / "none.bin")


def test_a_tokenizer_of_llama2c_merges_the_best_pair_first_and_stories_start_and_end_with_the_same_token(tmp_path):
    rng, letters = np.random.default_rng(0), " éabcno,"
    merged = {"".join(rng.choice(list(letters), size)) for size in (2, 2, 2, 3, 3, 4, 5) for _ in range(60)}
    tokens = ["<unk>", "\n<s>\n", "\n</s>\n", *(f"<0x{byte:02X}>" for byte in range(256)), *sorted(merged), *letters]
    scores = [0.0] * 259 + (-rng.permutation(len(tokens) - 259)).astype(float).tolist()
    content = [
        struct.pack("<fI", score, len(it.encode())) + it.encode() for it, score in zip(tokens, scores, strict=True)
    ]
    path = tmp_path / "tokenizer.bin"
    path.write_bytes(struct.pack("<I", max(len(it.encode()) for it in tokens)) + b"".join(content))
    tokenizer, ids = load_llama2c_tokenizer(path), {token: token_id for token_id, token in enumerate(tokens)}

    def encode(text):
        """Merge the neighbours whose union has the highest score, until no union is a token."""
        parts = [byte for it in f" {text}" for byte in ([it] if it in ids else [f"<0x{b:02X}>" for b in it.encode()])]
        while pairs := [(-scores[ids[a + b]], i) for i, (a, b) in enumerate(pairwise(parts)) if a + b in ids]:
            at = min(pairs)[1]
            parts[at : at + 2] = ["".join(parts[at : at + 2])]
        return [1, *(ids[part] for part in parts)]

    for text in (
        "a",
        "once, a can",
        "naïve 猫\n b  c",
        *("".join(rng.choice(list(letters), 40)).strip() for _ in range(30)),
    ):
        assert encode_prompt(tokenizer, text) == encode(text.rstrip(" ")) and tokenizer.decode(encode(text)) == text
    assert encode_prompt(tokenizer, "") == [1] and eos_id(tokenizer) == 1
    for damaged in (path.read_bytes()[:-1], b"\4\0\0\0"):
        path.write_bytes(damaged)
        with pytest.raises(ValueError, match=r"tokenizer\.bin is not a tokenizer of llama2\.c \(it ends within token"):
            load_llama2c_tokenizer(path)
