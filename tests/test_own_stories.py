"""A learner's own stories, in scripts that are not ours, through all five stages."""

import io
import json
import random
import warnings
from contextlib import redirect_stderr
from dataclasses import replace

import pytest

from tinystories_lab import presets
from tinystories_lab.checkpoint import load_model
from tinystories_lab.metrics import training_words
from tinystories_lab.model import GPTConfig
from tinystories_lab.notebook.diagrams import windows
from tinystories_lab.notebook.plots import odds_at_temperatures
from tinystories_lab.odds import likely_next
from tinystories_lab.ratings import blind_deck
from tinystories_lab.reciting import _longest_copies
from tinystories_lab.runlog import read_rows
from tinystories_lab.stages import STAGES
from tinystories_lab.stories import open_stories
from tinystories_lab.tokenizer import load_tokenizer, read_bin
from tinystories_lab.words import PROMPTS, prompts_for, words_of
from tinystories_lab.workspace import plan_workspace

RUSSIAN = (
    ("Однажды", "Как-то раз", "Давным-давно"),
    (" маленькая лиса", " серый волк", " добрый ёж", " весёлая белка"),
    (" нашла в лесу", " увидел у реки", " принёс домой"),
    (" красный мяч.", " синюю лодку.", " большой гриб."),
    ("\n\n«Чьё это?» — спросила сова.", "\n\n«Давай играть!» — сказал заяц."),
    (" Все были рады.", " Они стали друзьями.", " Потом пошёл снег."),
)
CHINESE = (
    ("从前，", "有一天，", "很久很久以前，"),
    ("一只小狐狸", "一个小女孩", "一只大黑熊", "一只白兔"),
    ("来到河边。", "住在森林里。", "想找朋友。"),
    ("“你是谁？”", "“一起玩吧！”", "“这是什么？”"),
    ("小猫笑着说。", "妈妈轻轻地问。"),
    ("他们回家吃饭。", "大家都很开心。", "月亮出来了。"),
)


def tell(grammar, count=300):
    dice = random.Random(0)
    stories = {"".join(map(dice.choice, grammar)) for _ in range(9 * count)}
    return sorted(stories)[:: max(1, len(stories) // count)][:count]


def put_down(folder, kind, stories):
    """A folder of one .txt a story, or a .jsonl."""
    folder.mkdir()
    if kind == "folder":
        for number, story in enumerate(stories):
            (folder / f"{number:03}.txt").write_text(story, encoding="utf-8")
        return folder
    lines = (json.dumps({"text": story}, ensure_ascii=False) + "\n" for story in stories)
    (folder / "сказки.jsonl").write_text("".join(lines), encoding="utf-8")
    return folder / "сказки.jsonl"


@pytest.fixture(scope="module", params=[(RUSSIAN, "file"), (CHINESE, "folder")], ids=["Russian", "Chinese"])
def finished(request, tmp_path_factory, train_config):
    """A workspace in which all five stages have ended, its stories, and what was warned of; made once for each script."""
    (grammar, kind), root = request.param, tmp_path_factory.mktemp("own")
    stories = tell(grammar)
    source = put_down(root / "mine", kind, stories)
    recipe = replace(
        train_config, batch_size=16, seq_len=64, total_steps=120, eval_every=60, log_every=20, save_every=60
    )
    model = GPTConfig(vocab_size=700, n_layer=2, n_head=2, d_model=64, max_len=64)
    micro = replace(presets.PRESETS["tiny"], model=model, train=recipe, sample_tokens=45)
    with (
        pytest.MonkeyPatch.context() as patch,
        warnings.catch_warnings(record=True) as warned,
        redirect_stderr(io.StringIO()),
    ):
        warnings.simplefilter("always")
        patch.setitem(presets.PRESETS, "tiny", micro)
        lab = plan_workspace(root, "tiny", str(source))
        for stage in STAGES.values():
            stage(lab)
    return lab, stories, [str(warning.message) for warning in warned]


def test_every_story_arrives_whole_in_one_of_the_two_token_files(finished):
    lab, stories, _ = finished
    _, report = open_stories(lab.data_dir)
    tokenizer = load_tokenizer(lab.data_dir / "tokenizer.json")
    told = [story for name in ("train.bin", "val.bin") for story in read_bin(lab.data_dir / name, tokenizer)]
    assert sorted(told) == sorted(stories) and len(stories) == 300
    assert (report.empty, report.duplicates, report.repaired) == (0, 0, 0)


def test_samples_go_on_from_openings_of_the_corpus_and_hold_no_broken_letter(finished):
    lab, stories, _ = finished
    tokenizer = load_tokenizer(lab.run_dir / "tokenizer.json")
    prompts = prompts_for(lab.data_dir / "val.bin", tokenizer)
    assert not set(prompts) & set(PROMPTS) and len(set(prompts)) >= 4
    assert all(any(story.startswith(prompt) for story in stories) for prompt in prompts)
    samples = read_rows(lab.run_dir / "samples.jsonl")
    assert [row["prompt"] for row in samples] == [*prompts] * 4
    after = [row["story"] for row in samples if row["when"] == "after"]
    assert not any("\ufffd" in story for story in after)
    known = training_words(lab.data_dir / "train.bin", tokenizer)
    assert all(set(words_of(story)) & known for story in after)


def test_the_report_has_figures_of_words_copies_and_stories_in_that_script(finished):
    lab, _, warned = finished
    report = (lab.run_dir / "report.md").read_text(encoding="utf-8")
    (known,) = [line for line in report.splitlines() if line.startswith("| known words")]
    before, after, real = (float(cell) for cell in known.split("|")[2:5])
    assert before < after <= 1 and real > 0.9 and after > 0.5
    (copied,) = [line for line in report.splitlines() if line.startswith("| told")]
    assert float(copied.split("|")[2]) >= 2
    assert read_rows(lab.run_dir / "samples.jsonl")[-10]["story"] in report
    assert not [message for message in warned if "lyph" in message]


def test_figures_of_its_tokens_are_drawn_without_a_word_about_fonts(finished, recwarn, tmp_path):
    lab, stories, _ = finished
    tokenizer, model = load_tokenizer(lab.run_dir / "tokenizer.json"), load_model(lab.run_dir / "final.pt")
    odds = likely_next(model, tokenizer, tokenizer.encode(stories[0]).ids[:5])
    pieces = [tokenizer.decode([token]) for token in tokenizer.encode("".join(stories[:3])).ids]
    for figure in (odds_at_temperatures({0.8: odds}), windows(pieces, 0, 20)):
        figure.savefig(tmp_path / "figure.png")
    assert not [warning for warning in recwarn if "lyph" in str(warning.message)]


def test_what_is_copied_is_counted_in_words_of_that_script(finished):
    lab, _, _ = finished
    tokenizer = load_tokenizer(lab.run_dir / "tokenizer.json")
    known = next(read_bin(lab.data_dir / "train.bin", tokenizer))
    (copied,) = _longest_copies([known], lab.data_dir / "train.bin", tokenizer)
    assert copied.words == len(words_of(known)) and known.startswith(copied.passage)


def test_a_blind_deck_goes_on_from_its_openings_and_cuts_real_and_told_stories_alike(finished):
    lab, stories, _ = finished
    tokenizer, model = load_tokenizer(lab.run_dir / "tokenizer.json"), load_model(lab.run_dir / "final.pt")
    deck = blind_deck(model, tokenizer, lab.data_dir / "val.bin", new_tokens=2)
    assert len(deck) == 8 and not any("\ufffd" in card["story"] for card in deck)
    cut = [
        card["story"].removesuffix(" ...") for card in deck if card["by"] == "real" and card["story"].endswith(" ...")
    ]
    assert cut and all(
        any(story.startswith(beginning) and story != beginning for story in stories) for beginning in cut
    )
