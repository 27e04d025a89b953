"""Stories cleaned, split and kept: what is dropped, what is repaired, and what is not touched."""

import json
import os
from itertools import pairwise

import datasets
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tinystories_lab import stories
from tinystories_lab.sources import END_OF_TEXT
from tinystories_lab.stories import CleanReport, _clean_rows, _split_rows, load_stories, open_stories, repair

UNDEFINED = (0x81, 0x8D, 0x8F, 0x90, 0x9D)  # the bytes that Windows-1252 has no character for


def write(path, texts):
    path.write_text("".join(json.dumps({"text": text}) + "\n" for text in texts), encoding="utf-8")
    return path


def tales(count):
    return [f"Story {number} is about a fox.\nIt ran {number} miles." for number in range(count)]


def read_back(splits):
    return {split: list(splits[split]["text"]) for split in splits}


def clean(rows):
    report = CleanReport("rows")
    return list(_clean_rows(iter(rows), report)), report


def refuse_to_read(*args):
    raise AssertionError("these stories are kept already; nothing is to be read")


def damage(text):
    """Text as it shows when its UTF-8 bytes are taken for Windows-1252."""
    return "".join(chr(byte) if byte in UNDEFINED else bytes([byte]).decode("cp1252") for byte in text.encode())


# --- cleaning ---------------------------------------------------------------------------------------------------------


def test_empty_rows_and_exact_duplicates_are_dropped_and_the_first_of_each_stays():
    rows = [("", text) for text in ("One.", None, "Two.", "", " \n\t", "One.", "  One.\n", "one.")]
    kept, report = clean(rows)
    assert kept == [("", "One."), ("", "Two."), ("", "one.")]
    assert (report.empty, report.duplicates, report.in_train, report.repaired) == (3, 2, 0, 0)


def test_a_validation_story_that_stands_in_train_is_dropped():
    rows = [("train", "One."), ("train", "Two."), ("validation", "Two.\n"), ("validation", "Three.")]
    kept, report = clean(rows)
    assert kept == [("train", "One."), ("train", "Two."), ("validation", "Three.")]
    assert (report.in_train, report.duplicates) == (1, 0)
    assert report.examples["in_train"] == ["Two."]


def test_a_duplicate_is_found_after_repair_and_whatever_marker_stands_around_it():
    rows = [
        ("", "“Hi,” said Zoë."),
        ("", damage("“Hi,” said Zoë.")),
        ("", f"{END_OF_TEXT}“Hi,” said Zoë.{END_OF_TEXT}\n"),
    ]
    kept, report = clean(rows)
    assert kept == [("", "“Hi,” said Zoë.")]
    assert (report.duplicates, report.repaired, report.empty) == (2, 0, 0)


def test_the_marker_parts_stories_inside_a_row_and_is_in_none():
    kept, report = clean([("train", f"One.\n{END_OF_TEXT}\nTwo.{END_OF_TEXT} {END_OF_TEXT}Three.{END_OF_TEXT}")])
    assert kept == [("train", "One."), ("train", "Two."), ("train", "Three.")]
    assert report.empty == 1


def test_the_report_counts_all_but_keeps_three_short_examples_of_each():
    rows = [("train", ""), ("train", None), ("train", "\n"), ("train", "\t"), ("train", " ")]
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


def test_the_report_as_a_sentence_tells_every_count():
    report = CleanReport("hub", train=1_001, validation=22, empty=303, duplicates=4_004, in_train=55, repaired=606)
    assert str(report) == (
        "hub: 1,001 stories to train on, 22 to validate with; dropped 303 empty, 4,004 duplicates, "
        "55 validation stories that stand in train; repaired 606"
    )


# --- repair -----------------------------------------------------------------------------------------------------------

# What English stories hold and wrong decoders break. No û: see the last of the texts that nothing is wrong with.
OFTEN_DAMAGED = "“”‘’–—…•†‹›€™àáâãäåæçèéêëìíîïñòóôõöøùúüýÿ«»¿¡£©®°½\u00a0🦊😀🎈🐶🙂"


@given(st.text(OFTEN_DAMAGED + "abcxyz ABC.,!?\n'\""))
def test_damaged_quotes_dashes_accents_and_emoji_are_repaired(text):
    assert repair(damage(text)) == text


@given(st.lists(st.sampled_from(["“Hi,”", "said", "Zoë’s", "dog", "—", "to", "Mr.", "Café…", "🦊!", "sûr"])), st.data())
def test_damage_in_part_of_a_text_is_repaired_there_and_the_rest_stays(words, data):
    damaged = [damage(word) if data.draw(st.booleans()) else word for word in words]
    assert repair(" ".join(damaged)) == " ".join(words)


def test_every_last_byte_of_damaged_punctuation_is_known():
    for number in range(0x2000, 0x2040):
        assert repair(damage(f"a{chr(number)}b")) == f"a{chr(number)}b"


NOTHING_WRONG = [
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


@pytest.mark.parametrize("text", NOTHING_WRONG)
def test_text_that_is_not_damaged_comes_back_as_it_is(text):
    assert repair(text) == text


@given(st.lists(st.sampled_from([word for text in NOTHING_WRONG for word in text.split()])), st.sampled_from(" \n"))
def test_repair_changes_ordinary_text_neither_once_nor_twice_nor_after_a_repair(words, space):
    text = space.join(words)
    assert repair(text) == text
    assert repair(repair(damage(text))) == repair(damage(text))


# --- the split --------------------------------------------------------------------------------------------------------


def share_of(rows):
    splits = [split for split, _ in rows]
    return splits.count("validation") / len(splits)


@pytest.mark.parametrize("share", [0.01, 0.05, 0.07, 0.1, 0.15, 0.3, 0.4, 0.45, 0.5])
def test_the_held_out_share_is_the_one_that_was_asked_for(share):
    rows = list(_split_rows((("", str(number)) for number in range(10_000)), share, seed=3))
    assert [story for _, story in rows] == [str(number) for number in range(10_000)]
    assert share_of(rows) == pytest.approx(share, abs=2e-4)


def test_the_held_out_stories_come_from_all_over_the_corpus():
    rows = _split_rows((("", str(number)) for number in range(10_000)), 0.05, seed=3)
    held_out = [int(story) for split, story in rows if split == "validation"]
    gaps = {after - before for before, after in pairwise(held_out)}
    assert len(gaps) > 30 and max(gaps) < 40


def test_a_split_that_the_source_has_is_kept():
    rows = [("train", "One."), ("validation", "Two."), ("train", "Three.")]
    assert list(_split_rows(iter(rows), 0.5, seed=0)) == rows


@pytest.mark.parametrize("share", [0, -0.1, 0.51, 1, 5])
def test_a_share_that_leaves_too_little_is_refused(share):
    with pytest.raises(ValueError, match=rf"validation_share is {share}; it must be above 0 and at most 0\.5"):
        load_stories("toyland", max_stories=5, validation_share=share)


@pytest.mark.parametrize("seed", range(8))
def test_two_stories_are_enough_for_two_splits(tmp_path, seed):
    splits, report = load_stories(write(tmp_path / "two.jsonl", tales(2)), tmp_path / "data", seed=seed)
    assert (len(splits["train"]), len(splits["validation"])) == (report.train, report.validation) == (1, 1)


def test_the_same_seed_gives_the_same_split_and_another_seed_another(tmp_path):
    path = write(tmp_path / "s.jsonl", tales(200))
    first, again, other = (read_back(load_stories(path, seed=seed)[0]) for seed in (1, 1, 2))
    assert first == again
    assert first["validation"] != other["validation"]
    assert len({split["validation"][0] for split in (read_back(load_stories(path, seed=s)[0]) for s in range(9))}) == 2


def test_every_story_is_in_one_split_and_in_its_order(tmp_path):
    told = tales(2_500)  # more than one batch of rows, and the last one not full
    splits, report = load_stories(write(tmp_path / "s.jsonl", told), tmp_path / "data")
    train, validation = (list(splits[split]["text"]) for split in ("train", "validation"))
    assert not set(train) & set(validation)
    assert [story for story in told if story in set(train)] == train
    assert [story for story in told if story in set(validation)] == validation
    assert len(train) + len(validation) == 2_500
    assert (report.train, report.validation) == (len(train), len(validation)) == (2_375, 125)


# --- load and keep ----------------------------------------------------------------------------------------------------


def test_both_splits_are_datasets_with_one_column_of_text(tmp_path):
    splits, _ = load_stories(write(tmp_path / "s.jsonl", tales(9)), tmp_path / "data")
    assert isinstance(splits, datasets.DatasetDict) and list(splits) == ["train", "validation"]
    for split in splits.values():
        assert split.features == {"text": datasets.Value("string")}
        assert split.cache_files, "the stories are memory-mapped, not held in memory"


def test_the_hub_keeps_its_own_split_and_is_cleaned_like_any_other_source(tmp_path, monkeypatch):
    hub = {
        "train": ["One.", "Two.", "", "One.", None, damage("“Three,” said Zoë.")],
        "validation": ["Two.", "“Three,” said Zoë.", "Four.", "Four.", " Five. "],
    }
    hub = datasets.DatasetDict({split: datasets.Dataset.from_dict({"text": texts}) for split, texts in hub.items()})
    monkeypatch.setattr(datasets, "load_dataset", lambda *args, **kwargs: hub)
    splits, report = load_stories("tinystories", tmp_path)
    assert read_back(splits) == {"train": ["One.", "Two.", "“Three,” said Zoë."], "validation": ["Four.", "Five."]}
    assert (report.source, report.train, report.validation) == ("tinystories", 3, 2)
    assert (report.empty, report.duplicates, report.in_train, report.repaired) == (2, 2, 2, 1)


def test_without_a_data_dir_the_stories_live_until_the_process_ends(tmp_path, monkeypatch):
    at_exit, path = [], write(tmp_path / "s.jsonl", tales(20))
    monkeypatch.setattr(stories.atexit, "register", lambda *args, **kwargs: at_exit.append((args, kwargs)))
    monkeypatch.setattr(stories.tempfile, "tempdir", str(tmp_path))
    splits, _ = load_stories(path)
    assert len(splits["train"]) == 19 and len(splits["validation"]) == 1
    assert len(list(tmp_path.iterdir())) == 2
    [((remove, *args), kwargs)] = at_exit
    remove(*args, **kwargs)
    assert list(tmp_path.iterdir()) == [path]


def test_the_same_request_opens_what_is_kept(tmp_path, monkeypatch):
    path = write(tmp_path / "s.jsonl", [*tales(50), "", tales(1)[0]])
    first, first_report = load_stories(path, tmp_path / "data", max_stories=40, seed=5)
    monkeypatch.setattr(stories, "read_rows", refuse_to_read)
    again, again_report = load_stories(str(path), str(tmp_path / "data"), max_stories=40, seed=5)
    assert read_back(again) == read_back(first) == read_back(open_stories(tmp_path / "data")[0])
    assert again_report == first_report == open_stories(tmp_path / "data")[1]


def test_what_is_kept_can_be_opened_without_the_source(tmp_path):
    path = write(tmp_path / "s.jsonl", [*tales(50), ""])
    first, first_report = load_stories(path, tmp_path / "data")
    path.unlink()
    again, again_report = open_stories(tmp_path / "data")
    assert read_back(again) == read_back(first)
    assert again_report == first_report and again_report.examples == {"empty": ["''"]}


@pytest.mark.parametrize("change", [{"seed": 1}, {"max_stories": 30}, {"validation_share": 0.5}])
def test_another_request_is_read_again(tmp_path, change):
    path = write(tmp_path / "s.jsonl", tales(50))
    before = read_back(load_stories(path, tmp_path / "data")[0])
    after = read_back(load_stories(path, tmp_path / "data", **change)[0])
    assert after != before
    assert after == read_back(load_stories(path, **change)[0])


def test_another_source_is_read_again(tmp_path):
    load_stories("toyland", tmp_path / "data", max_stories=9)
    splits, report = load_stories(write(tmp_path / "s.jsonl", tales(9)), tmp_path / "data", max_stories=9)
    assert sorted([*splits["train"]["text"], *splits["validation"]["text"]]) == tales(9)
    assert report.source == str(tmp_path / "s.jsonl")


def test_a_changed_file_is_read_again(tmp_path):
    path = write(tmp_path / "s.jsonl", tales(9))
    load_stories(path, tmp_path / "data")
    longer = load_stories(write(path, tales(10)), tmp_path / "data")[1]
    assert longer.train + longer.validation == 10
    write(path, [tale.replace("fox", "dog") for tale in tales(10)])  # as many bytes as before
    os.utime(path, ns=(0, 0))
    splits, _ = load_stories(path, tmp_path / "data")
    assert "dog" in splits["train"][0]["text"]
    write(path, tales(11))
    os.utime(path, ns=(0, 0))  # as old as before
    assert sum(load_stories(path, tmp_path / "data")[0].num_rows.values()) == 11


def test_a_folder_to_which_a_file_came_is_read_again(tmp_path):
    (tmp_path / "mine").mkdir()
    for count in (2, 3):
        (tmp_path / "mine" / f"{count}.txt").write_text(f"Story {count}.")
        (tmp_path / "mine" / "1.txt").write_text("Story 1.")
        report = load_stories(tmp_path / "mine", tmp_path / "data")[1]
        assert report.train + report.validation == count


def test_a_kept_request_of_the_same_name_in_another_folder_is_read_again(tmp_path, monkeypatch):
    for folder, tale in (("a", "fox"), ("b", "dog")):
        (tmp_path / folder).mkdir()
        write(tmp_path / folder / "s.jsonl", [text.replace("fox", tale) for text in tales(9)])
        os.utime(tmp_path / folder / "s.jsonl", ns=(0, 0))
        monkeypatch.chdir(tmp_path / folder)
        splits, _ = load_stories("s.jsonl", tmp_path / "data")
        assert tale in splits["train"][0]["text"]


def test_max_stories_stops_reading_early(tmp_path):
    path = write(tmp_path / "s.jsonl", tales(5))
    with path.open("a") as file:
        file.write("7\n" * 9)  # no story; reading on would raise
    splits, report = load_stories(path, max_stories=5)
    assert report.train + report.validation == 5
    assert sorted([*splits["train"]["text"], *splits["validation"]["text"]]) == tales(5)


@pytest.mark.parametrize("texts", [[], ["One."], ["One.", "One.", ""]])
def test_fewer_than_two_stories_are_refused_with_what_was_dropped(tmp_path, texts):
    path = write(tmp_path / "s.jsonl", texts)
    kept, empty, twice = len(set(texts) - {""}), texts.count(""), max(0, len(texts) - 2)
    sentence = rf"s\.jsonl gave {kept} stories .*\({empty} empty rows and {twice} duplicates dropped\); at least 2"
    with pytest.raises(ValueError, match=sentence):
        load_stories(path, tmp_path / "data")
    assert [path.name for path in (tmp_path / "data" / "stories").iterdir()] == []


def test_a_hub_whose_validation_stories_all_stand_in_train_is_refused(tmp_path, monkeypatch):
    same = datasets.Dataset.from_dict({"text": tales(4)})
    hub = datasets.DatasetDict(train=same, validation=same)
    monkeypatch.setattr(datasets, "load_dataset", lambda *args, **kwargs: hub)
    with pytest.raises(ValueError, match=r"tinystories gave 4 stories"):
        load_stories("tinystories", tmp_path)


@pytest.mark.parametrize("error", [KeyboardInterrupt, ValueError])
def test_an_interrupted_load_keeps_what_was_there_and_the_next_one_reads_again(tmp_path, monkeypatch, error):
    def interrupted(*args):
        yield from (("", tale) for tale in tales(1_500))
        raise error

    path = write(tmp_path / "s.jsonl", tales(9))
    load_stories(path, tmp_path / "data", seed=1)
    with monkeypatch.context() as patch, pytest.raises(error):
        patch.setattr(stories, "read_rows", interrupted)
        load_stories(path, tmp_path / "data", seed=2)
    assert not list((tmp_path / "data").rglob("*.partial"))
    kept, report = open_stories(tmp_path / "data")
    assert (len(kept["train"]), len(kept["validation"])) == (report.train, report.validation) == (8, 1)
    splits, _ = load_stories(path, tmp_path / "data", seed=2)
    assert sorted([*splits["train"]["text"], *splits["validation"]["text"]]) == tales(9)


def test_stories_that_were_never_prepared_name_the_notebook_to_run(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"no cleaned stories in .*: run 01_prepare \(or `prepare`"):
        open_stories(tmp_path)


def test_an_unknown_or_missing_source_is_refused_before_what_is_kept_is_touched(tmp_path):
    path = write(tmp_path / "s.jsonl", tales(9))
    load_stories(path, tmp_path)
    with pytest.raises(ValueError, match=r"unknown source 'tinystory'"):
        load_stories("tinystory", tmp_path)
    with pytest.raises(FileNotFoundError, match=r"there is no file .*missing\.txt"):
        load_stories(tmp_path / "missing.txt", tmp_path)
    assert open_stories(tmp_path)[1].source == str(path)
