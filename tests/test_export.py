"""A run in the ecosystem's format is the same model there: the same logits, the same stories, the same tokens."""

import json
import shutil
from dataclasses import replace

import gguf
import pytest
import torch
import yaml
from safetensors.torch import load_file
from tinystories_lab.presets import PRESETS
from tinystories_lab.runlog import read_rows
from tinystories_lab.workspace import plan_workspace
from transformers import AutoModelForCausalLM, AutoTokenizer, pipeline

from tinystories_lab import stages
from tinystories_lab.checkpoint import load_model
from tinystories_lab.compare import run_row
from tinystories_lab.export import export_hugging_face
from tinystories_lab.generate import stream
from tinystories_lab.sources import END_OF_TEXT
from tinystories_lab.tokenizer import load_tokenizer, save_tokenizer, train_tokenizer
from tinystories_lab.words import PROMPTS

FILES = {"config.json", "generation_config.json", "model.safetensors", "tokenizer.json", "tokenizer_config.json"}
FILES |= {"README.md"}


@pytest.fixture(scope="module")
def lab(tmp_path_factory, stories, model_config, train_config):
    """A run through all five stages, of a model large enough that a wrong layout shows in its logits."""
    home = tmp_path_factory.mktemp("lab")
    (home / "made_up.txt").write_text("\n\n".join(stories))
    model = replace(model_config, n_head=4, d_model=64, max_len=64)
    train = replace(train_config, total_steps=150, peak_lr=2e-2, log_every=50, eval_every=50, save_every=100)
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(PRESETS, "micro", replace(PRESETS["tiny"], name="micro", model=model, train=train))
        lab = plan_workspace(home, "micro", str(home / "made_up.txt"))
        for stage in stages.STAGES.values():
            stage(lab)
    return lab


@pytest.fixture(scope="module")
def folder(lab, tmp_path_factory):
    """The exported folder, far from the run that it is of."""
    return export_hugging_face(lab.run_dir, tmp_path_factory.mktemp("far away") / "model")


@pytest.fixture(scope="module")
def ours(lab):
    return load_model(lab.run_dir / "final.pt"), load_tokenizer(lab.run_dir / "tokenizer.json")


@pytest.fixture(scope="module")
def theirs(folder):
    return AutoModelForCausalLM.from_pretrained(folder).eval(), AutoTokenizer.from_pretrained(folder)


def assert_same_logits(ours, theirs, ids):
    with torch.no_grad():
        difference = (ours(ids)[0] - theirs(ids).logits).abs().max().item()
    assert difference < 1e-4, f"{difference} over {tuple(ids.shape)}"


@pytest.mark.parametrize("length", [1, 2, 17, 63, 64])
def test_transformers_gives_the_same_logits_for_random_ids(ours, theirs, length):
    ids = torch.randint(ours[0].config.vocab_size, (4, length), generator=torch.Generator().manual_seed(length))
    assert_same_logits(ours[0], theirs[0], ids)


@pytest.mark.parametrize("prompt", [*PROMPTS, "Lily found a red ball in the park. Lily was very happy."])
def test_transformers_gives_the_same_logits_for_real_prompts(ours, theirs, prompt):
    ids = ours[1].encode(prompt).ids
    assert theirs[1](prompt).input_ids == ids
    assert_same_logits(ours[0], theirs[0], torch.tensor([ids]))


@pytest.mark.parametrize("prompt", ["Lily found a", "Ben", "The little dog wanted"])
def test_transformers_tells_the_same_greedy_story_token_by_token(ours, theirs, prompt):
    ids, end_id = ours[1].encode(prompt).ids, ours[1].token_to_id(END_OF_TEXT)
    new = list(stream(ours[0], ids, 40, temperature=0, stop_id=end_id))
    told = theirs[0].generate(torch.tensor([ids]), max_new_tokens=40, do_sample=False)[0].tolist()
    assert new and told[: len(ids) + len(new)] == ids + new
    assert len(new) == 40 or told[len(ids) + len(new) :] == [end_id]


def test_the_pipeline_tells_a_story_from_the_folder_alone(ours, folder):
    tell = pipeline("text-generation", str(folder))
    greedy = tell("Lily found a", max_new_tokens=12, do_sample=False)[0]["generated_text"]
    ids = ours[1].encode("Lily found a").ids
    assert greedy == "Lily found a" + ours[1].decode(list(stream(ours[0], ids, 12, temperature=0)))
    settings = tell.model.generation_config
    assert (settings.do_sample, settings.temperature, settings.top_k) == (True, 0.8, 50), "as it tells at home"
    assert tell("Ben")[0]["generated_text"].startswith("Ben")


@pytest.mark.parametrize("text", ["", " two  spaces", "naïve 🐉 猫\n\ttab", "A. <|endoftext|> B. <|pad|>", PROMPTS[0]])
def test_any_text_has_the_same_tokens_there_and_comes_back(ours, theirs, text):
    ids = theirs[1](text).input_ids
    assert ids == ours[1].encode(text).ids and theirs[1].decode(ids) == text


def test_special_tokens_are_those_of_the_lab(ours, theirs):
    model, tokenizer = theirs
    end_id = ours[1].token_to_id(END_OF_TEXT)
    for holder in (tokenizer, model.config, model.generation_config):
        assert (holder.bos_token_id, holder.eos_token_id, holder.pad_token_id) == (end_id, end_id, 1)
    assert tokenizer.model_max_length == model.config.max_position_embeddings == 64


def test_the_shared_embedding_is_stored_once(ours, theirs, folder):
    sizes = {name: tensor.numel() for name, tensor in load_file(folder / "model.safetensors").items()}
    assert sum(sizes.values()) == ours[0].count_parameters() == theirs[0].num_parameters()
    assert "lm_head.weight" not in sizes
    assert theirs[0].lm_head.weight.data_ptr() == theirs[0].model.embed_tokens.weight.data_ptr()


def test_what_went_out_comes_back_as_the_same_model(ours, folder):
    back, model = load_model(folder).state_dict(), ours[0].state_dict()
    assert back.keys() == model.keys() and all(torch.equal(back[name], model[name]) for name in model)


def test_gguf_has_a_name_for_every_weight_and_finds_merges_and_special_tokens(folder, ours):
    layers = ours[0].config.n_layer
    known = gguf.get_tensor_name_map(gguf.MODEL_ARCH.LLAMA, layers)
    mapped = {known.get_name(name, try_suffixes=(".weight",)) for name in load_file(folder / "model.safetensors")}
    parts = ("attn_norm", "attn_q", "attn_k", "attn_v", "attn_output", "ffn_norm", "ffn_gate", "ffn_up", "ffn_down")
    in_layers = {f"blk.{layer}.{part}.weight" for layer in range(layers) for part in parts}
    assert mapped == {"token_embd.weight", "output_norm.weight"} | in_layers
    special = gguf.SpecialVocab(folder, load_merges=True)
    assert special.special_token_ids == {"bos": 0, "eos": 0, "pad": 1} and special.add_special_token["bos"] is False
    assert len(special.merges) == ours[1].get_vocab_size() - 258
    settings = json.loads((folder / "config.json").read_text())
    needed = {"max_position_embeddings", "hidden_size", "intermediate_size", "num_attention_heads", "rms_norm_eps"}
    assert settings.keys() >= needed | {"num_key_value_heads", "num_hidden_layers", "rope_theta", "vocab_size"}


def test_the_card_says_what_the_runs_files_say(lab, folder):
    _, header, card = (folder / "README.md").read_text(encoding="utf-8").split("---\n", 2)
    assert yaml.safe_load(header)["pipeline_tag"] == "text-generation"
    row = run_row(lab.run_dir)
    for figure in (
        f"{row['parameters']:,}",
        f"{row['loss']:.3f} nats",
        f"| {row['bits a byte']:#.3g} |",
        "150 of 4 x 16",
    ):
        assert figure in card, figure
    told = [sample for sample in read_rows(lab.run_dir / "samples.jsonl") if sample["when"] == "after"]
    assert all(sample["story"] in card for sample in told[:3]) and told[3]["story"] not in card
    assert str(lab.run_dir.parents[1]) not in card, "whoever reads it on the Hub need not know the maker's folders"
    assert "made_up.txt" in card and "their owners'" in card


@pytest.mark.parametrize(("source", "licence"), [("tinystories", "cdla-sharing-1.0"), ("toyland", "mit")])
def test_the_card_names_the_licence_of_known_data(lab, tmp_path, source, licence):
    run_dir = shutil.copytree(lab.run_dir, tmp_path / "runs" / "copy")
    config = yaml.safe_load((run_dir / "config.yaml").read_text()) | {"source": source}
    (run_dir / "config.yaml").write_text(yaml.safe_dump(config))
    _, header, card = (export_hugging_face(run_dir, tmp_path) / "README.md").read_text().split("---\n", 2)
    header = yaml.safe_load(header)
    assert header["license"] == licence and header["language"] == "en"
    if source == "tinystories":
        assert header["datasets"] == ["roneneldan/TinyStories"] and "CDLA-Sharing-1.0" in card


def test_a_folder_holds_the_export_and_what_else_was_there(lab, folder, tmp_path):
    assert {path.name for path in folder.iterdir()} == FILES
    (tmp_path / "notes.txt").write_text("mine")
    (tmp_path / "config.json").write_text("old")
    export_hugging_face(lab.run_dir, tmp_path)
    assert {path.name for path in tmp_path.iterdir()} == FILES | {"notes.txt"}
    assert (tmp_path / "config.json").read_bytes() == (folder / "config.json").read_bytes()


def test_another_tokenizer_is_refused_and_nothing_is_written(lab, tmp_path):
    run_dir = shutil.copytree(lab.run_dir, tmp_path / "run")
    save_tokenizer(train_tokenizer(["other stories than those"], 270), run_dir / "tokenizer.json")
    with pytest.raises(ValueError, match=r"tokenizer\.json is not the tokenizer that .*final\.pt was trained with"):
        export_hugging_face(run_dir, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_an_unfinished_run_is_not_exported(lab, tmp_path):
    run_dir = shutil.copytree(lab.run_dir, tmp_path / "run")
    (run_dir / "final.pt").unlink()
    with pytest.raises(FileNotFoundError, match=r"final\.pt"):
        export_hugging_face(run_dir, tmp_path / "out")
    assert not (tmp_path / "out").exists()
