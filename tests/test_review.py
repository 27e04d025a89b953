"""Was it any good? Figures that can be worked out by hand, and what a run has left to do."""

import json
import math

import pytest

from tinystories_lab.review import (
    BOOK_RESULTS,
    bits_per_byte,
    checklist,
    perplexity,
    save_samples,
)
from tinystories_lab.runlog import append_row, read_rows


def test_perplexity_of_the_chapters_loss_is_about_12_choices():
    assert perplexity(2.45) == pytest.approx(11.59, abs=0.005)
    assert perplexity(0) == 1 and perplexity(math.log(8_000)) == pytest.approx(8_000)


def test_bits_per_byte_of_the_chapters_loss():
    assert bits_per_byte(2.45, 4.1) == pytest.approx(0.862, abs=0.0005)
    assert bits_per_byte(math.log(2), 1) == 1
    assert bits_per_byte(math.log(256), 1) == pytest.approx(8), "bytes drawn at random need all their bits"


def test_saving_samples_replaces_those_of_the_same_when_only(tmp_path):
    save_samples(tmp_path, "before", [{"story": "b1"}, {"story": "b2"}])
    save_samples(tmp_path, "after", [{"story": "a1"}])
    save_samples(tmp_path, "after", ({"story": story, "seed": 1} for story in ("a2", "“Zoë”\u2028")))
    assert read_rows(tmp_path / "samples.jsonl") == [
        {"when": "before", "story": "b1"},
        {"when": "before", "story": "b2"},
        {"when": "after", "story": "a2", "seed": 1},
        {"when": "after", "story": "“Zoë”\u2028", "seed": 1},
    ]
    save_samples(tmp_path, "before", [])
    assert [row["when"] for row in read_rows(tmp_path / "samples.jsonl")] == ["after", "after"]
    assert [path.name for path in tmp_path.iterdir()] == ["samples.jsonl"]


def test_samples_that_cannot_be_written_leave_the_old_ones(tmp_path):
    save_samples(tmp_path, "after", [{"story": "kept"}])
    with pytest.raises(TypeError):
        save_samples(tmp_path, "after", [{"story": "new"}, {"story": object()}])
    assert read_rows(tmp_path / "samples.jsonl") == [{"when": "after", "story": "kept"}]


def test_checklist_of_an_empty_folder_is_all_open(tmp_path):
    assert len(checklist(tmp_path)) == 7 and not any(checklist(tmp_path).values())
    assert not any(checklist(tmp_path / "not there").values())


FILES = {
    "final.pt": "final.pt saved",
    "loss_curve.png": "loss curve as loss_curve.png",
    "config.yaml": "config.yaml, to repeat the run",
    "tokenizer.json": "tokenizer.json beside the model",
}


def test_checklist_of_a_full_folder_is_all_done_and_each_item_is_its_own(tmp_path):
    done = set()

    def newly_done():
        new = {item for item, there in checklist(tmp_path).items() if there} - done
        done.update(new)
        return new

    for name, item in FILES.items():
        (tmp_path / name).touch()
        assert newly_done() == {item}
    for when in ("before", "after"):
        save_samples(tmp_path, when, [{"story": "x"}] * 9)
        assert newly_done() == set(), "nine are not ten"
        save_samples(tmp_path, when, [{"story": "x"}] * 10)
        assert newly_done() == {f"ten samples from {when} training"}
    append_row(tmp_path / "ratings.jsonl", {"grammar": 1, "coherence": 1, "fun": 1})
    assert newly_done() == {"stories rated in ratings.jsonl"}
    assert all(checklist(tmp_path).values())


def test_the_chapters_figures_are_plain_data():
    assert json.loads(json.dumps(BOOK_RESULTS))["machines"]["Colab T4, fp16"]["final_loss"] == 2.45
    losses = list(BOOK_RESULTS["loss_by_step"].values())
    assert losses == sorted(losses, reverse=True) and losses[-1] == 2.45
