"""Stories cleaned, split and stored; mojibake; and a learner's own stories in other scripts through all five stages."""

import json
import os
import random
import re
import subprocess
import sys
import tracemalloc
import warnings
from dataclasses import replace
from itertools import pairwise
from pathlib import Path

import datasets
import micro
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tinystories_lab import files as files_module
from tinystories_lab.analysis.memorization import memorization_overlaps
from tinystories_lab.analysis.metrics import training_words
from tinystories_lab.analysis.ratings import blind_deck
from tinystories_lab.checkpoint import load_model
from tinystories_lab.data import stories
from tinystories_lab.data.stories import CleanReport, StoryTexts, _fix_mojibake, load_stories, open_stories
from tinystories_lab.data.text import PROMPTS, prompts_for, words_of
from tinystories_lab.files import read_rows, sha256_of
from tinystories_lab.model import GPTConfig
from tinystories_lab.notebook.diagrams import windows
from tinystories_lab.pipeline import STAGES
from tinystories_lab.run import Preset, Workspace
from tinystories_lab.tokenizer import END_OF_TEXT, load_tokenizer, read_bin

UNDEFINED = (0x81, 0x8D, 0x8F, 0x90, 0x9D)  # the bytes that Windows-1252 has no character for


def write(path, texts):
    path.write_text("".join(json.dumps({"text": text}) + "\n" for text in texts), encoding="utf-8")
    return path


def tales(count, hero="fox"):
    return [f"Story {number} is about a {hero}.\nIt ran {number} miles." for number in range(count)]


def texts_of(splits):
    return {split: list(StoryTexts(splits[split])) for split in splits}


def all_of(splits):
    return sorted(text for split in splits.values() for text in StoryTexts(split))


def clean(rows):
    report = CleanReport("rows")
    return list(stories._clean_rows(iter(rows), report)), report


def damage(text):
    """Text as it looks when its UTF-8 bytes are decoded as Windows-1252."""
    return "".join(chr(byte) if byte in UNDEFINED else bytes([byte]).decode("cp1252") for byte in text.encode())


@pytest.fixture
def on_hub(monkeypatch):
    """`on_hub(train=["One."])` puts such splits on the Hub."""

    def put(**splits):
        hub = datasets.DatasetDict(
            {split: datasets.Dataset.from_dict({"text": rows}) for split, rows in splits.items()}
        )
        monkeypatch.setattr(datasets, "load_dataset", lambda *args, **kwargs: hub)

    return put


# --- cleaning ---------------------------------------------------------------------------------------------------------


def test_empty_rows_and_exact_duplicates_are_dropped_and_the_first_of_each_stays():
    kept, report = clean([("", text) for text in ("One.", None, "Two.", "", " \n\t", "One.", "  One.\n", "one.")])
    assert kept == [("", "One."), ("", "Two."), ("", "one.")]
    assert (report.empty, report.duplicates, report.in_train, report.repaired) == (3, 2, 0, 0)


def test_a_duplicate_is_found_after_the_repair_and_with_any_marker_around_it():
    story = "“Hi,” said Zoë."
    kept, report = clean([("", story), ("", damage(story)), ("", f"{END_OF_TEXT}{story}{END_OF_TEXT}\n")])
    assert kept == [("", story)]
    assert (report.duplicates, report.repaired, report.empty) == (2, 0, 0)


def test_the_marker_separates_stories_inside_a_row_and_stays_in_none():
    kept, report = clean([("train", f"One.\n{END_OF_TEXT}\nTwo.{END_OF_TEXT} {END_OF_TEXT}Three.{END_OF_TEXT}")])
    assert kept == [("train", "One."), ("train", "Two."), ("train", "Three.")]
    assert report.empty == 1


def test_the_hubs_own_split_is_kept_without_validation_stories_that_also_appear_in_train(on_hub, tmp_path):
    on_hub(
        train=["One.", "Two.", "", "One.", None, damage("“Three,” said Zoë.")],
        validation=["Two.", "“Three,” said Zoë.", "Four.", "Four.", " Five. "],
    )
    splits, report = load_stories("tinystories", tmp_path)
    assert texts_of(splits) == {"train": ["One.", "Two.", "“Three,” said Zoë."], "validation": ["Four.", "Five."]}
    examples = report.examples | {"empty": ["''"] * 2, "repaired": [damage("“Three,” said Zoë.")]}
    assert examples["in_train"] == ["Two.", "“Three,” said Zoë."]
    assert report == CleanReport("tinystories", 3, 2, 2, 2, 2, 1, examples, rows=11, fingerprint=report.fingerprint)


def test_the_report_counts_all_but_keeps_three_short_examples_of_each():
    rows = [("train", text) for text in ("", None, "\n", "\t", " ")]
    rows += [("train", f"{number} " + "long " * 100) for number in range(7) for _ in range(2)]
    rows += [("train", "Before. " * 50 + damage(f"“{number}” ") + "after. " * 50) for number in range(6)]
    rows += [("validation", f"{number} " + "long " * 100) for number in range(7)]
    _, report = clean(rows)
    assert (report.empty, report.duplicates, report.repaired, report.in_train) == (5, 7, 6, 7)
    assert set(report.examples) == {"empty", "duplicates", "repaired", "in_train"}
    for examples in report.examples.values():
        assert len(examples) == 3 and all(len(example) <= 200 for example in examples)
    assert report.examples["empty"] == ["''"] * 3
    assert [example[0] for example in report.examples["duplicates"]] == ["0", "1", "2"]
    for number, example in enumerate(report.examples["repaired"]):
        assert damage(f"“{number}”") in example, "an example of a repair shows the damage, however deep in the story"


def test_the_report_as_a_sentence_gives_every_count():
    assert str(
        CleanReport("hub", train=1_001, validation=22, empty=303, duplicates=4_004, in_train=55, repaired=606)
    ) == (
        "hub: 1,001 stories to train on and 22 for validation; dropped 303 empty rows, 4,004 duplicates and "
        "55 validation stories that also appear in train; repaired 606"
    )
    notes = [f"note {number}" for number in range(9)]
    skipped = {"another type (.md)": 3_000, "hidden": 1}
    assert str(CleanReport("mine", 5, 1, duplicates=2, in_train=1, skipped=skipped, notes=notes)).splitlines() == [
        "mine: 5 stories to train on and 1 for validation; "
        "dropped 2 duplicates and 1 validation stories that also appear in train",
        "not read: another type (.md): 3,000, hidden: 1",
        *notes[:5],
        "and 4 more such notes",
    ]
    assert str(CleanReport("mine", 5, 1)) == "mine: 5 stories to train on and 1 for validation"


# --- mojibake ---------------------------------------------------------------------------------------------------------

CORRECT = [
    "“It’s late,” said the fox — and ran… ‘Wait!’ 🦊👨‍👩‍👧 🙂",
    "Il est allé « à la plage » — où ça ? À l’école, bien sûr ! « C’est dû », dit-il.",
    "«\u00a0Où est-il allé\u00a0» dit-elle. «\u00a0Par là\u00a0», dit l’âne\u00a0; c’est français\u00a0».",
    "Elle a crié\u00a0: «\u00a0Je suis allé\u00a0!\u00a0» Le château d’Âne\u00a0; «\u202fallé\u202f»",
    "“MA\u00c7\u00c3”, disse a mãe. ‘IRM\u00c3’ — “AMANH\u00c3”… S\u00c3O JO\u00c3O, A\u00c7\u00c3O, a maçã é da irmã.",
    "Tôi là Â, ĐÃ đi, MÃ, “ĐÃ”… Bà ấy đã kể chuyện “Ngày xửa ngày xưa” cho cháu — ở đây.",
    "Âne, Ângela, ÂME; în, România „așa” și â; Ð og ðŸ; €5, £5, ™, ©",
    "「むかしむかし、あるところに」と、おばあさんは言いました。",
    "Жила-была «лиса» — „хитрая“. Ψάρι. 从前有一只狐狸。 여우가 있었다. שועל",
    "«AMANH\u00c3», «MA\u00c7\u00c3»: \u00abIRM\u00c3\u00bb",
]


LETTERS = (
    "abc ABC. être à l’école garçon où maçã irmã às pão ðað þú hún ný café äöü àá âã åæ çè éê ëì íî ïñ òó ôõ öø ùú í"
)
TITLES = "Sébastien König Bär Tür Bøf Hún Más Fëmijë Sûr Tôi Côte Dîner Título Até Dívka"
SIGNS = "“Hi,” ‘no’ – — … • † ‹x› €5 ™ 🦊😀 🎈🐶🙂 £5 ¡Hola! ¿Qué © ® 20°C ½ dit-il »,|«\u00a0allé\u00a0»|crié\u00a0: «\u00a0là\u00a0!\u00a0»|\u00a0"
DAMAGED_WORDS = [word for text in (LETTERS, TITLES, SIGNS) for word in re.split("[ |]", text)]


@given(st.lists(st.sampled_from(DAMAGED_WORDS)), st.sampled_from([" ", "\n", ", ", ". "]))
def test_damaged_quotes_dashes_accents_and_emoji_are_repaired(words, between):
    text = between.join(words)
    assert _fix_mojibake(damage(text)) == text


@given(st.lists(st.sampled_from(["“Hi,”", "said", "Zoë’s", "dog", "—", "to", "Mr.", "Café…", "🦊!", "sûr"])), st.data())
def test_damage_in_part_of_a_text_is_repaired_there_and_the_rest_stays(words, data):
    damaged = [damage(word) if data.draw(st.booleans()) else word for word in words]
    assert _fix_mojibake(" ".join(damaged)) == " ".join(words)


def test_every_last_byte_of_damaged_punctuation_is_known():
    for number in range(0x2000, 0x2040):
        assert _fix_mojibake(damage(f"a{chr(number)}b")) == f"a{chr(number)}b"


@pytest.mark.parametrize("text", CORRECT)
def test_correct_text_comes_back_unchanged(text):
    assert _fix_mojibake(text) == text


# In lower, upper and title case, these have all letters that look like damage: Ã and Â at the end and the start of words.
LANGUAGES = {
    "Portuguese": "amanhã cedo a irmã fez lã, maçã, romã e pão; âncora à beira d’água, você não vê o avô ângela",
    "Vietnamese": "đã ngã mã tôi là câu ấy ân cần ăn cơm, bà lã dã sâu â ã trẻ em về nhà",
    "Turkish": "kâğıt hâlâ rüzgâr âşık lâle dükkân çocuk şimdi güneş ığdır yârâ",
    "Romanian": "când lângă râu mâine pâinea română sânt ântâi â şi ţară, în colină, a hotărâ",
    "French": "âne château là où ça déjà été l’âme à la forêt, âge, hâte, noël, œuf, dû",
    "Spanish": "niño mañana árbol corazón ¿qué? ¡vámonos! pingüino él único índice 1º 2ª",
    "German": "mädchen könig tür straße bär äpfel über fröhlich süß",
    "Icelandic": "það þú hún ný ær í á ég börnin sögðu ævintýri",
    "Czech": "kůň žába dítě říká večer čas ďábel úplně",
    "Polish": "żółw łąka źrebię gęś dziś ósmy cię książę",
    "Albanian": "është një fëmijë përrallë çaj ëndërr",
    "Galician": "mañá irmá chã lã ourã avoã",
    "Guarani": "ã kuñã mitã ava ñande porã hã",
    "Estonian": "öö päev õunad ühel väike mõõk šokolaad",
}
CASES = (str.lower, str.upper, str.title)
AFTER = [
    "\u00a0",
    "»",
    "«",
    "ª",
    "º",
    "°",
    "®",
    "©",
    '"',
    ".",
    "¹",
    "²",
    "´",
    "·",
    "¡",
    "¿",
    "!",
    "\u00a0»",
    "»\u00a0",
    "¨",
]


@pytest.mark.parametrize("language", LANGUAGES)
def test_healthy_words_of_any_language_and_case_come_back_unchanged_whatever_sign_follows(language):
    words = LANGUAGES[language].split()
    for case in CASES:
        assert _fix_mojibake(case(LANGUAGES[language])) == case(LANGUAGES[language])
        for sign in AFTER:
            for word in map(case, words):
                for text in (
                    f"{word}{sign}",
                    f"«{word}{sign} ",
                    f"« {word}{sign}{case('cedo')} ",
                    f"“{word} {word}{sign}",
                ):
                    if word.upper() not in ("Â", "Ã") or text.startswith("«" + word + "»"):  # letters that are a word
                        assert _fix_mojibake(text) == text
            sentence = sign.join(map(case, (word for word in words if len(word) > 1)))
            if case is str.upper or sign in ('"', ".", "!"):
                assert _fix_mojibake(sentence) == sentence


@pytest.mark.parametrize("language", LANGUAGES)
def test_damaged_lower_case_text_of_any_language_is_repaired(language):
    old = re.compile(rf"â[€‚„]{stories._CONTINUATION}|(?!Ã»(?!\w))[ÂÃ][\u00a0-\u00bf]")
    for text in (LANGUAGES[language], *LANGUAGES[language].split()):
        repaired = _fix_mojibake(damage(text))
        assert not old.search(repaired), "what was repaired before is repaired still"
        assert repaired == text or re.search("[ÄÅ][\x80-\u2122]|Ã[^\u00a0-\u00bf]|áº|á»|Æ", damage(text))


@pytest.mark.parametrize("language", LANGUAGES)
def test_a_second_repair_of_any_language_changes_nothing(language):
    for case in CASES:
        once = _fix_mojibake(damage(case(LANGUAGES[language])))
        assert _fix_mojibake(once) == once


@given(st.lists(st.sampled_from([word for text in CORRECT for word in text.split()])), st.sampled_from(" \n"))
def test_a_second_repair_changes_nothing(words, space):
    text = space.join(words)
    assert _fix_mojibake(text) == text
    assert _fix_mojibake(_fix_mojibake(damage(text))) == _fix_mojibake(damage(text))


# --- the split --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("share", [0.01, 0.05, 0.07, 0.15, 0.4, 0.45, 0.5])
def test_validation_has_the_share_that_was_asked_for_drawn_from_all_over_the_corpus(share):
    rows = list(stories._split_rows((("", str(number)) for number in range(10_000)), share, seed=3))
    assert [story for _, story in rows] == [str(number) for number in range(10_000)]
    places = [int(story) for split, story in rows if split == "validation"]
    assert len(places) / 10_000 == pytest.approx(share, abs=2e-4)
    gaps = {after - before for before, after in pairwise(places)}
    assert max(gaps) < 2 / share + 1 and len(gaps) >= {0.01: 60, 0.05: 31, 0.07: 20}.get(share, 3)


def test_a_split_of_the_source_is_kept():
    rows = [("train", "One."), ("validation", "Two."), ("train", "Three.")]
    assert list(stories._split_rows(iter(rows), 0.5, seed=0)) == rows


@pytest.mark.parametrize("share", [0, -0.1, 0.51, 5])
def test_a_share_that_leaves_too_little_is_refused(share):
    with pytest.raises(ValueError, match=rf"validation_share is {share}; it must be above 0 and at most 0\.5"):
        load_stories("toyland", max_stories=5, validation_share=share)


def test_two_stories_are_enough_for_two_splits_and_the_seed_decides_which_is_which(tmp_path):
    path = write(tmp_path / "two.jsonl", tales(2))
    held_out = set()
    for seed in range(8):
        splits, report = load_stories(path, tmp_path / "data", seed=seed)
        assert (len(splits["train"]), len(splits["validation"])) == (report.train, report.validation) == (1, 1)
        held_out.add(splits["validation"][0]["text"])
    assert held_out == set(tales(2))


# --- load and store ---------------------------------------------------------------------------------------------------


def test_every_story_is_in_one_of_two_memory_mapped_datasets_in_its_order(tmp_path):
    splits, report = load_stories(write(tmp_path / "s.jsonl", tales(500)), tmp_path / "data")
    assert isinstance(splits, datasets.DatasetDict) and list(splits) == ["train", "validation"]
    for split in splits.values():
        assert split.features == {"text": datasets.Value("string")} and split.cache_files
        texts = list(StoryTexts(split))
        assert texts == sorted(texts, key=tales(500).index)
    assert all_of(splits) == sorted(tales(500))
    assert (report.train, report.validation) == (475, 25)


def test_memory_holds_a_few_megabytes_of_text_however_long_the_stories_are(tmp_path):
    path = write(tmp_path / "s.jsonl", (f"{number} " + "long " * 25_000 for number in range(160)))  # 125 kB each
    tracemalloc.start()
    splits, _ = load_stories(path, tmp_path / "data")
    assert tracemalloc.get_traced_memory()[1] < 8e6
    assert max(batch.nbytes for batch in splits["train"].data.to_batches()) < 1.5e6
    tracemalloc.reset_peak()
    assert sum(map(len, StoryTexts(splits["train"]))) > 18e6
    assert tracemalloc.get_traced_memory()[1] < 8e6
    tracemalloc.stop()


def test_the_same_request_opens_what_is_stored_without_reading_the_source(tmp_path, monkeypatch):
    path = write(tmp_path / "s.jsonl", [*tales(50), "", tales(1)[0]])
    first, report = load_stories(path, tmp_path / "data", max_stories=51, seed=5)
    monkeypatch.setattr(stories, "read_source", None)  # reading again would raise
    again, same_report = load_stories(str(path), str(tmp_path / "data"), max_stories=51, seed=5)
    path.unlink()
    opened, stored_report = open_stories(tmp_path / "data")
    assert texts_of(opened) == texts_of(again) == texts_of(first)
    assert stored_report == same_report == report and report.examples == {"empty": ["''"]}


def test_another_version_of_the_package_reads_again(tmp_path, monkeypatch):
    load_stories("toyland", tmp_path, max_stories=3)
    monkeypatch.setattr(stories, "__version__", "another")
    monkeypatch.setattr(stories, "read_source", lambda *args: iter([("", "One."), ("", "Two.")]))
    assert all_of(load_stories("toyland", tmp_path, max_stories=3)[0]) == ["One.", "Two."]


def test_built_in_stories_are_prepared_again_if_their_grammar_has_changed(tmp_path, monkeypatch, capsys):
    load_stories("toyland", tmp_path / "data", max_stories=3)
    (tmp_path / "toyland.yaml").write_bytes(stories.GRAMMAR.read_bytes() + b"# a comment\n")
    monkeypatch.setattr(stories, "GRAMMAR", tmp_path / "toyland.yaml")
    load_stories("toyland", tmp_path / "data", max_stories=3)
    load_stories("toyland", tmp_path / "data", max_stories=3)
    assert capsys.readouterr().out.count("the stories are prepared again: the files have changed\n") == 1


def test_stories_stored_by_version_1_0_open(tmp_path):
    (tmp_path / "stories").mkdir()
    for split, texts in (("train", tales(2_375)), ("validation", ["Fin."])):
        schema = pa.schema({"text": pa.string()})
        with pa.ipc.new_stream(tmp_path / "stories" / f"{split}.arrow", schema) as writer:
            for start in range(0, len(texts), 1_000):  # that version wrote batches of 1,000 rows
                writer.write_batch(pa.record_batch([texts[start : start + 1_000]], schema))
    report = {"source": "a.jsonl", "train": 2_375, "validation": 1, "empty": 1, "duplicates": 0, "in_train": 0}
    report |= {"repaired": 0, "examples": {"empty": ["''"]}}
    request = {"max_stories": None, "validation_share": 0.05, "seed": 0, "hub": "f54c", "version": "1.0.0"}
    (tmp_path / "stories" / "report.json").write_text(json.dumps({"request": request, "report": report}))
    splits, opened = open_stories(tmp_path)
    assert texts_of(splits) == {"train": tales(2_375), "validation": ["Fin."]}
    assert opened == CleanReport("a.jsonl", 2_375, 1, empty=1, examples={"empty": ["''"]})


def test_without_a_data_dir_the_stories_are_deleted_when_the_process_ends(tmp_path, monkeypatch):
    at_exit, path = [], write(tmp_path / "s.jsonl", tales(20))
    monkeypatch.setattr(stories.atexit, "register", lambda *args, **kwargs: at_exit.append((args, kwargs)))
    monkeypatch.setattr(stories.tempfile, "tempdir", str(tmp_path))
    splits, _ = load_stories(path)
    assert len(splits["train"]) == 19 and len(splits["validation"]) == 1
    assert len(list(tmp_path.iterdir())) == 2
    [((remove, *args), kwargs)] = at_exit
    remove(*args, **kwargs)
    assert list(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize("change", [{"seed": 1}, {"max_stories": 30}, {"validation_share": 0.5}])
def test_another_request_is_read_again(tmp_path, change):
    path = write(tmp_path / "s.jsonl", tales(50))
    before = texts_of(load_stories(path, tmp_path / "data")[0])
    after = texts_of(load_stories(path, tmp_path / "data", **change)[0])
    assert before != after == texts_of(load_stories(path, tmp_path / "other", **change)[0])


def test_a_changed_file_and_a_file_added_to_a_folder_are_read_again(tmp_path):
    (tmp_path / "mine").mkdir()
    path = tmp_path / "mine" / "a.jsonl"
    for texts, time in ((tales(9), 1), (tales(9, "dog"), 2), (tales(11), 2)):  # of equal length, then of equal age
        write(path, texts)
        os.utime(path, ns=(time, time))
        splits, report = load_stories(path, tmp_path / "data")
        assert all_of(splits) == sorted(texts) and report.source == str(path)
    for count in (11, 12):
        assert len(all_of(load_stories(tmp_path / "mine", tmp_path / "other")[0])) == count
        write(tmp_path / "mine" / "b.jsonl", ["Another story."])


def test_a_file_of_the_same_name_in_another_folder_is_read_again(tmp_path, monkeypatch):
    for hero in ("fox", "dog"):
        (tmp_path / hero).mkdir()
        os.utime(write(tmp_path / hero / "s.jsonl", tales(9, hero)), ns=(0, 0))
        monkeypatch.chdir(tmp_path / hero)
        assert all_of(load_stories("s.jsonl", tmp_path / "data")[0]) == sorted(tales(9, hero))


def test_max_stories_stops_reading_early(tmp_path):
    path = write(tmp_path / "s.jsonl", tales(5))
    with path.open("a") as file:
        file.write("7\n" * 9)  # no story; reading on would raise
    assert all_of(load_stories(path, max_stories=5)[0]) == tales(5)


@pytest.mark.parametrize("texts", [[], ["One."], ["One.", "One.", ""]])
def test_fewer_than_two_stories_are_refused_with_what_was_dropped(tmp_path, texts):
    path = write(tmp_path / "s.jsonl", texts)
    kept, empty, duplicates = len(set(texts) - {""}), texts.count("") or not texts, max(0, len(texts) - 2)
    dropped = rf"\({int(empty)} empty rows, {duplicates} duplicates, 0 in both splits\); at least 2"
    with pytest.raises(ValueError, match=rf"s\.jsonl gave {kept} stor(y|ies) .*{dropped}"):
        load_stories(path, tmp_path / "data")
    assert list((tmp_path / "data" / "stories").iterdir()) == []


def test_a_hub_whose_validation_stories_all_appear_in_train_is_refused(on_hub, tmp_path):
    on_hub(train=tales(4), validation=tales(4))
    with pytest.raises(ValueError, match=r"tinystories gave 4 stories"):
        load_stories("tinystories", tmp_path)


@pytest.mark.parametrize("error", [KeyboardInterrupt, ValueError])
def test_an_interrupted_load_keeps_the_old_stories_and_the_next_one_reads_again(tmp_path, monkeypatch, error):
    def interrupted(*args):
        yield from (("", tale) for tale in tales(1_500))
        raise error

    def interrupted_report(report):
        raise error

    path = write(tmp_path / "s.jsonl", tales(9))
    before = texts_of(load_stories(path, tmp_path / "data", seed=1)[0])
    with monkeypatch.context() as patch, pytest.raises(error):
        patch.setattr(stories, "read_source", interrupted)
        patch.setattr(stories, "_BATCH_BYTES", 9_999)  # some batches are on disk already
        load_stories(path, tmp_path / "data", seed=2)
    assert not list((tmp_path / "data").rglob("*.partial"))
    kept, report = open_stories(tmp_path / "data")
    assert texts_of(kept) == before and (report.train, report.validation) == (8, 1)
    with monkeypatch.context() as patch, pytest.raises(error):  # the stories are new, their report is not written yet
        patch.setattr(stories, "asdict", interrupted_report)
        load_stories(path, tmp_path / "data", seed=2)
    assert not (tmp_path / "data" / "stories" / "report.json").exists()
    assert all_of(load_stories(path, tmp_path / "data", seed=2)[0]) == tales(9)


def test_stories_that_were_never_prepared_name_the_notebook_to_run(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"no cleaned stories in .*: run 01_prepare \(or `prepare`"):
        open_stories(tmp_path)


# --- another source, damage, and another session ----------------------------------------------------------------------


def state_of(folder):
    return {path: (path.read_bytes(), path.stat().st_mtime_ns) for path in folder.rglob("*") if path.is_file()}


REFUSED = (
    r"{there} holds the stories of {old}, not of {new}: use another data name \(--data NAME .* or remove that folder"
)


@pytest.mark.parametrize("damage_report", [None, b"", b"[]", "remove"])
def test_the_stories_of_another_source_are_refused_before_anything_there_changes(tmp_path, monkeypatch, damage_report):
    (tmp_path / "anna").mkdir()
    (tmp_path / "ben").mkdir()
    anna, ben = (write(tmp_path / name / "stories.jsonl", tales(9, name)) for name in ("anna", "ben"))
    there = tmp_path / "data"
    load_stories(anna, there)
    sidecar = {"tokens": 9, "stories": 1, "bytes": 1, "vocab_size": 1, "dtype": "uint16", "tokenizer_sha256": ""}
    (there / "train.json").write_text(json.dumps(sidecar | {"sha256": "", "source": str(anna)}))
    report = there / "stories" / "report.json"
    if damage_report == "remove":
        report.unlink()
    elif damage_report is not None:
        report.write_bytes(damage_report)
    before = state_of(there)
    for source in (ben, "toyland", "tinystories", tmp_path / "anna"):
        message = REFUSED.format(there=there, old=anna, new=source)
        with pytest.raises(ValueError, match=message):
            load_stories(source, there)
    assert state_of(there) == before
    monkeypatch.chdir(tmp_path)
    (tmp_path / "link").symlink_to("anna")
    for source in ("anna/stories.jsonl", "./ben/../anna/stories.jsonl", "link/stories.jsonl"):  # the same file
        assert all_of(load_stories(source, there)[0]) == sorted(tales(9, "anna"))


def test_the_stories_of_one_hub_dataset_are_not_those_of_another(on_hub, tmp_path):
    on_hub(train=tales(9))
    load_stories("ada/tales", tmp_path)
    with pytest.raises(ValueError, match=REFUSED.format(there=tmp_path, old="ada/tales", new="ada/other")):
        load_stories("ada/other", tmp_path)


def test_a_source_named_relatively_is_known_by_its_absolute_path_in_another_folder(tmp_path, monkeypatch, capsys):
    path = write(tmp_path / "s.jsonl", tales(9))
    monkeypatch.chdir(tmp_path)
    load_stories("s.jsonl", tmp_path / "data")
    monkeypatch.chdir("/")
    monkeypatch.setattr(stories, "read_source", None)  # reading again would raise
    assert load_stories(path, tmp_path / "data")[1].source == "s.jsonl" and not capsys.readouterr().out


def test_a_line_says_why_stories_are_prepared_again_and_only_then(tmp_path, capsys, monkeypatch):
    path, there = write(tmp_path / "s.jsonl", tales(9)), tmp_path / "data"

    def said(**options):
        load_stories(path, there, **options)
        return capsys.readouterr().out

    assert said() == said() == ""
    assert said(max_stories=8) == "the stories are prepared again: max_stories was None and is now 8\n"
    os.utime(path, ns=(0, 0))
    assert said(max_stories=8, seed=3) == (
        "the stories are prepared again: seed was 0 and is now 3, the files have changed\n"
    )
    (there / "stories" / "train.arrow").unlink()
    assert f"again: there is no {there / 'stories' / 'train.arrow'}\n" in said(max_stories=8, seed=3)
    (there / "stories" / "report.json").write_bytes(b"{")
    assert f"again: {there / 'stories' / 'report.json'} is damaged (" in said(max_stories=8, seed=3)
    assert said(max_stories=8, seed=3) == ""


@pytest.fixture(scope="module")
def prepared(tmp_path_factory):
    """A source, a data folder with its stories, and the bytes of its files; restore them after a change."""
    folder = tmp_path_factory.mktemp("prepared")
    path = write(folder / "s.jsonl", [*tales(40), ""])
    load_stories(path, folder / "data")
    return path, folder / "data", {file: file.read_bytes() for file in (folder / "data" / "stories").iterdir()}


def damages(data):
    """Strategies for the bytes of a damaged file: cut off, a part replaced or removed, a bit flipped, or others."""
    place = st.integers(0, len(data) - 1)
    flipped = st.builds(
        lambda at, bit: data[:at] + bytes([data[at] ^ 1 << bit]) + data[at + 1 :], place, st.integers(0, 7)
    )
    replaced = st.builds(
        lambda at, new: data[:at] + new + data[at + len(new) :], place, st.binary(min_size=1, max_size=99)
    )
    removed = st.builds(lambda at, size: data[:at] + data[at + size :], place, st.integers(1, 99))
    return st.one_of(place.map(lambda at: data[:at]), flipped, replaced, removed, st.binary(max_size=99), st.just(None))


@settings(max_examples=60)
@given(st.data())
def test_damaged_stories_are_refused_in_a_sentence_without_a_change_and_made_again(prepared, data):
    path, there, contents = prepared
    file = data.draw(st.sampled_from(sorted(contents)))
    damaged = data.draw(damages(contents[file]))
    for other, content in contents.items():
        other.write_bytes(content)
    file.unlink()
    if damaged is not None:
        file.write_bytes(damaged)
    before = state_of(there)
    try:
        splits, report = open_stories(there)
        opened = texts_of(splits), str(report)
    except (FileNotFoundError, ValueError) as error:
        again = "first" if isinstance(error, FileNotFoundError) else "again"
        assert str(error).endswith(f": run 01_prepare (or `prepare` in the shell) {again}") and "\n" not in str(error)
        opened = None
    assert state_of(there) == before
    if file.suffix == ".arrow":
        assert (opened is None) == (damaged != contents[file])
    if opened:
        assert sorted(text for texts in opened[0].values() for text in texts) == sorted(tales(40))
    try:
        splits, report = load_stories(path, there)
    except ValueError as error:  # the name of the source is damaged
        assert "holds the stories of" in str(error) and state_of(there) == before
    else:
        assert all_of(splits) == sorted(tales(40)) and all_of(open_stories(there)[0]) == sorted(tales(40))


def test_an_arrow_file_is_hashed_once_per_session_and_only_if_its_time_has_changed(prepared, monkeypatch):
    _, there, contents = prepared
    for file, content in contents.items():
        file.write_bytes(content)
    hashed = []
    files_module._sha256_of_version.cache_clear()
    monkeypatch.setattr(files_module, "sha256_of", lambda path: hashed.append(Path(path).name) or sha256_of(path))
    for _ in range(2):
        open_stories(there)
        assert sorted(hashed) == ["train.arrow", "validation.arrow"]
    saved = json.loads((there / "stories" / "report.json").read_text())
    for split, (_, time, _) in saved["arrow"].items():
        os.utime(there / "stories" / f"{split}.arrow", ns=(time, time))
    open_stories(there)
    assert len(hashed) == 2


@pytest.mark.parametrize("damaged", [b"", b"Once upon a time.", "cut"])
def test_stories_of_an_older_version_that_stored_no_checksums_are_checked_by_their_number(prepared, damaged):
    path, there, contents = prepared
    for file, content in contents.items():
        file.write_bytes(content)
    report, arrow = there / "stories" / "report.json", there / "stories" / "train.arrow"
    saved = json.loads(report.read_text())
    for name in ("rows", "skipped", "notes"):
        saved["report"].pop(name)
    report.write_text(json.dumps({"request": saved["request"], "report": saved["report"]}))
    opened = open_stories(there)[1]
    assert (opened.train, opened.rows, opened.skipped, opened.notes) == (38, 0, {}, [])
    arrow.write_bytes(contents[arrow][:-600] if damaged == "cut" else damaged)
    with pytest.raises(ValueError, match=r"train\.arrow is damaged .*: run 01_prepare"):
        open_stories(there)
    assert all_of(load_stories(path, there)[0]) == sorted(tales(40))


def test_of_two_sessions_at_once_one_prepares_and_the_other_opens_its_stories(tmp_path):
    path = write(tmp_path / "s.jsonl", tales(20_000))
    code = (
        "import sys; from tinystories_lab.data.stories import load_stories; print('ready', flush=True); input(); "
        "from tinystories_lab.data import stories; read = stories._prepare; "
        "stories._prepare = lambda *given: print('reads') or read(*given); "
        "splits, report = load_stories(sys.argv[1], sys.argv[2]); print(report.rows, len(splits['train']))"
    )
    command = [sys.executable, "-c", code, str(path), str(tmp_path / "data")]
    pipes = dict.fromkeys(("stdin", "stdout", "stderr"), subprocess.PIPE)
    sessions = [subprocess.Popen(command, text=True, **pipes) for _ in range(2)]
    for session in sessions:
        assert session.stdout.readline() == "ready\n"
    for session in sessions:
        session.stdin.write("\n")
        session.stdin.flush()
    results = [session.communicate(timeout=120) for session in sessions]
    assert [session.returncode for session in sessions] == [0, 0], results
    assert sum("reads" in output for output, _ in results) == 1
    assert [output.splitlines()[-1] for output, _ in results] == ["20000 19000"] * 2
    assert len(all_of(open_stories(tmp_path / "data")[0])) == 20_000


def test_a_hub_that_cannot_be_reached_leaves_no_file(on_hub, tmp_path, monkeypatch):
    def refuse(*args, **kwargs):
        raise ConnectionError("no network")

    monkeypatch.setattr(datasets, "load_dataset", refuse)
    with pytest.raises(ConnectionError):
        load_stories("ada/tales", tmp_path / "data")
    assert not (tmp_path / "data").exists()


@pytest.mark.parametrize("count", [1, 0, -1])
def test_a_cap_that_leaves_less_than_two_stories_is_refused(tmp_path, count):
    with pytest.raises(ValueError, match=rf"max_stories is {count}; it must be at least 2"):
        load_stories("toyland", tmp_path / "data", max_stories=count)
    assert not (tmp_path / "data").exists()


def test_splits_in_names_are_kept_without_validation_stories_that_also_appear_in_train(tmp_path):
    (tmp_path / "mine").mkdir()
    write(tmp_path / "mine" / "train-0.jsonl", tales(20))
    write(tmp_path / "mine" / "test-0.jsonl", [*tales(2), "Last.", ""])
    splits, report = load_stories(tmp_path / "mine", tmp_path / "data")
    assert texts_of(splits) == {"train": tales(20), "validation": ["Last."]}
    assert (report.rows, report.empty, report.in_train) == (24, 1, 2)
    assert str(report).endswith('the split "test" is used for validation')


@pytest.mark.parametrize("source, error", [("tinystory", ValueError), ("missing.txt", FileNotFoundError)])
def test_an_unknown_or_missing_source_is_refused_before_the_stored_stories_are_touched(tmp_path, source, error):
    path = write(tmp_path / "s.jsonl", tales(9))
    load_stories(path, tmp_path)
    with pytest.raises(error, match=rf"(unknown source|there is no file) .*{source}"):
        load_stories(source, tmp_path)
    assert open_stories(tmp_path)[1].source == str(path)


# --- a learner's own stories, end to end ------------------------------------------------------------------------------

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


@pytest.fixture(scope="module", params=[RUSSIAN, CHINESE], ids=["Russian file", "Chinese folder"])
def finished(request, tmp_path_factory):
    """A workspace after all five stages, its stories, its tokenizer and model, and the warnings; made once per script."""
    root, choose = tmp_path_factory.mktemp("own"), random.Random(0).choice
    texts = sorted({"".join(map(choose, request.param)) for _ in range(2_700)})[::2][:300]
    source = root / "сказки.jsonl"
    if request.param is RUSSIAN:
        write(source, texts)
    else:
        (source := root / "mine").mkdir()
        for number, text in enumerate(texts):
            (source / f"{number:03}.txt").write_text(text, encoding="utf-8")
    train = replace(micro.TRAIN, batch_size=8, seq_len=32, total_steps=50, eval_every=25, save_every=50, keep_every=50)
    model = GPTConfig(vocab_size=700, n_layer=2, n_head=2, d_model=64, max_len=32)
    lab = Workspace(Preset("own", "", None, 1_000, None, 45, model, train), str(source), root / "data", root / "run")
    with warnings.catch_warnings(record=True) as warned:
        warnings.simplefilter("always")
        for stage in STAGES.values():
            stage(lab)
    tokenizer, model = load_tokenizer(lab.run_dir / "tokenizer.json"), load_model(lab.run_dir / "final.pt")
    return lab, texts, tokenizer, model, [str(warning.message) for warning in warned]


def test_every_own_story_arrives_whole_in_one_of_the_two_token_files(finished):
    lab, texts, tokenizer, *_ = finished
    _, report = open_stories(lab.data_dir)
    written = [story for name in ("train.bin", "val.bin") for story in read_bin(lab.data_dir / name, tokenizer)]
    assert sorted(written) == texts and len(texts) == 300
    assert (report.empty, report.duplicates, report.repaired) == (0, 0, 0)


def test_samples_continue_openings_of_own_stories_and_contain_no_broken_letter(finished):
    lab, texts, tokenizer, *_ = finished
    prompts = prompts_for(lab.data_dir / "val.bin", tokenizer)
    assert not set(prompts) & set(PROMPTS) and len(set(prompts)) >= 4
    assert all(any(text.startswith(prompt) for text in texts) for prompt in prompts)
    samples = read_rows(lab.run_dir / "samples.jsonl")
    assert [row["prompt"] for row in samples] == [*prompts] * 4
    known = training_words(lab.data_dir / "train.bin", tokenizer)
    for story in (row["story"] for row in samples if row["when"] == "after"):
        assert "\ufffd" not in story and set(words_of(story)) & known


def test_the_report_has_figures_of_words_overlaps_and_stories_in_that_script(finished):
    lab, *_, warned = finished
    report = (lab.run_dir / "report.md").read_text(encoding="utf-8")
    rows = {line.split("|")[1].strip(): line.split("|")[2:] for line in report.splitlines() if line.startswith("|")}
    before, after, real = map(float, rows["known words"][:3])
    assert before < after <= 1 and real > 0.9 and after > 0.5
    assert float(rows["generated"][0]) >= 2
    assert read_rows(lab.run_dir / "samples.jsonl")[-10]["story"] in report
    assert not [message for message in warned if "lyph" in message]


def test_figures_of_its_tokens_are_drawn_without_a_warning_about_fonts(finished, recwarn, tmp_path):
    _, texts, tokenizer, *_ = finished
    tokens = [tokenizer.decode([token]) for token in tokenizer.encode("".join(texts[:3])).ids]
    windows(tokens, 0, 20).savefig(tmp_path / "figure.png")
    assert not [warning for warning in recwarn if "lyph" in str(warning.message)]


def test_overlaps_are_counted_in_words_of_that_script(finished):
    lab, _, tokenizer, *_ = finished
    story = next(read_bin(lab.data_dir / "train.bin", tokenizer))
    sample = {"story": story, "prompt": "", "max_new_tokens": 9}
    (overlap,) = memorization_overlaps([sample], lab.data_dir, tokenizer)["generated"]
    assert overlap.words == len(words_of(story)) and story.startswith(overlap.passage)


def test_a_blind_deck_starts_with_its_openings_and_cuts_real_and_generated_stories_alike(finished):
    lab, texts, tokenizer, model, _ = finished
    deck = blind_deck(model, tokenizer, lab.data_dir / "val.bin", new_tokens=2)
    assert len(deck) == 8 and not any("\ufffd" in card["story"] for card in deck)
    cut = [card["story"].removesuffix(" ...") for card in deck if card["by"] == "real" and " ..." in card["story"]]
    assert cut and all(any(text.startswith(start) and text != start for text in texts) for start in cut)
