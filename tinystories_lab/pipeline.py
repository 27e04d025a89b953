"""The five stages of a run, for the shell and the notebooks. Each stage reads the files of the stage before it."""

import math
import warnings
from collections.abc import Iterator, Mapping
from contextlib import nullcontext
from functools import partial
from pathlib import Path

import torch
from datasets import Dataset
from tokenizers import Tokenizer

from tinystories_lab.analysis.evaluation import read_samples, reads_tinystories, run_results, save_samples
from tinystories_lab.analysis.report import RunSummary, summarize_run, summary_text, write_report
from tinystories_lab.analysis.timelapse import keep_story
from tinystories_lab.checkpoint import load_model
from tinystories_lab.data.sources import CleanReport
from tinystories_lab.data.stories import StoryTexts, load_stories, open_stories
from tinystories_lab.data.text import prompts_for
from tinystories_lab.device import choose_device, choose_dtype, rank
from tinystories_lab.durability.identity import require_run_data
from tinystories_lab.durability.lock import data_lock, run_lock
from tinystories_lab.durability.mirror import Mirror
from tinystories_lab.durability.shutdown import graceful_shutdown
from tinystories_lab.files import Row, aside, read_log
from tinystories_lab.generate import generate_samples
from tinystories_lab.integrations.huggingface import export_hugging_face
from tinystories_lab.loader import BinInfo, open_tokens
from tinystories_lab.model import new_model
from tinystories_lab.progress import progress
from tinystories_lab.run import Workspace, save_config
from tinystories_lab.tokenizer import load_tokenizer, save_tokenizer, tokenizer_sha256, train_tokenizer, write_bin
from tinystories_lab.trainer import train

_MAX_CHARACTERS_PER_TOKEN = 64  # no tokenizer of natural text reaches it on average


def prepare(lab: Workspace) -> None:
    """stories -> cleaned and split"""
    stories, report = load_stories(lab.source, lab.data_dir, max_stories=lab.preset.max_stories)
    print(report)
    check_corpus(lab, stories)


def check_corpus(lab: Workspace, stories: Mapping[str, Dataset]) -> None:
    """Raise ValueError if the stories of a split are too few for one window of tokens, with the smallest remedy."""
    needed, tokenizer, found = lab.preset.train.seq_len + 1, None, {}
    for split, dataset in stories.items():
        first, size = [], 0
        for story in StoryTexts(dataset):
            first.append(story)
            size += len(story)
            if len(first) >= needed // 2 or size > _MAX_CHARACTERS_PER_TOKEN * needed:  # a story has two tokens or more
                break
        else:  # so few stories that their tokens must be counted
            tokenizer = tokenizer or _train_tokenizer(lab, stories["train"])
            found[split] = sum(len(tokenizer.encode(story).ids) + 1 for story in first)
    split = min(found, key=found.get, default=None)
    if split is None or found[split] >= needed:
        return
    count, seq_len = len(stories[split]), 2 ** int(math.log2(found[split] - 1))
    shares = {"train": 1, "validation": 20}  # of 20 stories, one is in the validation split
    # With more stories, tokens become longer, so a little more than in proportion is needed.
    enough = max(math.ceil(1.3 * needed * len(stories[it]) / found[it]) * shares[it] for it in found)
    raise ValueError(
        f"the {split} split has {count} stories with {found[split]} tokens, but one window of seq_len {needed - 1} needs "
        f"{needed}: use about {enough} stories in all, or a seq_len of {seq_len} (`--seq-len {seq_len}` in the shell, "
        f"lab.with_train_config(seq_len={seq_len}) in a notebook)"
    )


def _train_tokenizer(lab: Workspace, stories: Dataset) -> Tokenizer:
    return train_tokenizer(StoryTexts(stories, lab.preset.tokenizer_stories), lab.preset.model.vocab_size)


def tokenizer_stage(lab: Workspace) -> None:
    """cleaned stories -> tokenizer.json, train.bin, val.bin"""
    stories, report = open_stories(lab.data_dir)
    if not _is_tokenized(lab, report):
        with data_lock(lab.data_dir):
            if not _is_tokenized(lab, report):  # another session may have written the files in the meantime
                tokenizer = _train_tokenizer(lab, stories["train"])
                save_tokenizer(tokenizer, lab.data_dir / "tokenizer.json")
                for split, name, limit in (
                    ("train", "train.bin", lab.preset.max_tokens),
                    ("validation", "val.bin", None),
                ):
                    made_from = report.source, report.fingerprint
                    write_bin(lab.data_dir / name, StoryTexts(stories[split]), tokenizer, limit, *made_from)
    for name in ("train.bin", "val.bin"):
        info, count = BinInfo.load(lab.data_dir / name), len(stories["train" if name == "train.bin" else "validation"])
        of_all = f" of {count:,} (max_tokens is {lab.preset.max_tokens:,})" if info.stories < count else ""
        in_stories = f"{info.tokens:,} tokens in {info.stories:,} stories{of_all}"
        print(f"{name}: {in_stories}, {info.bytes_per_token:.2f} bytes per token")


def _is_tokenized(lab: Workspace, stories: CleanReport) -> bool:
    """Return whether the token files are undamaged and were made from these stories."""
    if not has_data(lab):
        return False
    written_last, written_first = lab.data_dir / "val.json", lab.data_dir / "stories" / "report.json"
    made_from = BinInfo.load(lab.data_dir / "val.bin").made_from
    if made_from and stories.fingerprint:
        return made_from == stories.fingerprint
    return written_last.stat().st_mtime >= written_first.stat().st_mtime  # made in a notebook, or by an older version


def train_run(
    lab: Workspace, device: torch.device | str | None = None, dtype: torch.dtype | None = None
) -> Iterator[Row]:
    """Train the run of a workspace, or resume it. Yield the rows of `train`.

    It adds what keeps a run safe: a lock for one session at a time, config.yaml, the mirror, and Ctrl-C and termination
    signals that wait for the end of a step; and the time-lapse (see `keep_story`). With a mirror, each row has
    mirrored_step, the newest step there. The loop raises BlockingIOError if another session trains this run, and all
    that `train` raises.
    """
    mirror, trouble = None, None
    if lab.mirror_root and rank() == 0:
        mirror = Mirror(lab.run_dir, lab.data_dir, lab.mirror_root)
    with run_lock(lab.run_dir) if rank() == 0 else nullcontext(), graceful_shutdown() as shutdown:
        hooks = {"after_save": mirror.update, "checkpoint": mirror.restore()} if mirror else {}
        hooks |= {"should_stop": shutdown.requested, "after_row": partial(keep_story, lab)}
        rows = train(lab.run_dir, lab.data_dir, lab.model_config, lab.preset.train, device, dtype, **hooks)
        if rank() == 0:
            save_config(lab)
        with mirror or nullcontext():
            if mirror:
                mirror.update()
            try:
                while True:
                    with shutdown.deferred():
                        row = next(rows, None)
                    if row is None:
                        break
                    yield row | ({"mirrored_step": mirror.step} if mirror else {})
                    trouble, known = mirror.trouble if mirror else None, trouble
                    if trouble and trouble != known:
                        warnings.warn(f"{mirror}: training continues", stacklevel=2)
            finally:
                with shutdown.deferred():
                    rows.close()  # this saves the run if the caller has left the loop


def train_stage(lab: Workspace) -> None:
    """train.bin -> last.pt, final.pt, loss.jsonl, samples from before training"""
    device, device_reason = choose_device()
    tokenizer = load_tokenizer(lab.data_dir / "tokenizer.json")
    untrained = new_model(lab.model_config, lab.preset.train.seed)
    print(f"{untrained.count_parameters():,} parameters; {device_reason}; {choose_dtype(device)[1]}")
    rows = train_run(lab)
    if rank() == 0:
        rows = _with_progress(rows, lab.preset.train.total_steps)
    needs_samples = rank() == 0 and not read_samples(lab.run_dir)
    for _ in rows:
        if needs_samples:  # not earlier: a run that does not match its folder is refused before the first row
            needs_samples, prompts = False, prompts_for(lab.data_dir / "val.bin", tokenizer)
            samples = generate_samples(untrained, tokenizer, lab.preset.sample_tokens, prompts)
            save_samples(lab.run_dir, "before", samples)
    print(f"finished: {lab.run_dir / 'final.pt'}")


def generate_stage(lab: Workspace) -> None:
    """final.pt -> ten stories in samples.jsonl"""
    require_run_data(lab)
    model = load_model(lab.run_dir / "final.pt", choose_device()[0])
    tokenizer = load_tokenizer(lab.run_dir / "tokenizer.json")
    prompts = prompts_for(lab.data_dir / "val.bin", tokenizer)
    samples = generate_samples(model, tokenizer, lab.preset.sample_tokens, prompts)
    save_samples(lab.run_dir, "after", samples)
    print(f"saved {len(samples)} stories in {lab.run_dir / 'samples.jsonl'}")


def write_results(lab: Workspace) -> RunSummary:
    """Write the run's two curves and report.md into its folder. Return what the report says.

    Raises ValueError or FileNotFoundError if files of the run or its data are missing, damaged, or of other runs.
    """
    from tinystories_lab.analysis.curves import loss_curve  # imports matplotlib, which no other stage needs

    run_results(lab.run_dir)  # raises an error if there is no evaluation
    require_run_data(lab)
    log = read_log(lab.run_dir / "loss.jsonl")
    for name, by_tokens in (("loss_curve.png", False), ("loss_by_tokens.png", True)):
        figure = loss_curve(log, lab.model_config.vocab_size, by_tokens, chapter=reads_tinystories(lab.source))
        figure.savefig(lab.run_dir / name, dpi=120, bbox_inches="tight")
    summary = summarize_run(lab)
    write_report(summary)
    return summary


def retrospective(lab: Workspace) -> None:
    """the run's files -> its curves and report.md"""
    print(summary_text(write_results(lab)))
    print(f"  report      {lab.run_dir / 'report.md'}")
    print(f"  files       {lab.run_dir.resolve()} and {lab.data_dir.resolve()}")


def export_stage(lab: Workspace) -> None:
    """final.pt -> hugging_face/ in the run's folder, which transformers loads"""
    folder = export_hugging_face(lab.run_dir, lab.run_dir / "hugging_face")
    for path in sorted(folder.iterdir()):
        print(f"  {path.stat().st_size:12,} bytes  {path}")
    print(f"to share it on the Hub: hf upload YOU/{lab.run_dir.name} {folder}")


STAGES = {
    "prepare": prepare,
    "tokenizer": tokenizer_stage,
    "train": train_stage,
    "generate": generate_stage,
    "retrospective": retrospective,
}
COMMANDS = STAGES | {"export": export_stage}


def has_data(lab: Workspace) -> bool:
    """Return whether all files that training reads are there, undamaged, and belong together."""
    try:
        fingerprint = tokenizer_sha256(load_tokenizer(lab.data_dir / "tokenizer.json"))
        for name in ("train.bin", "val.bin"):
            open_tokens(lab.data_dir / name)
            info = BinInfo.load(lab.data_dir / name)
            if info is None or info.tokenizer_sha256 != fingerprint:
                return False
    except (OSError, ValueError):
        return False
    return True


def restore(lab: Workspace) -> None:
    """Restore from the mirror, if there is one, what this machine lacks of the run and its data.

    If the mirror has no data, it is made again, and `train` checks its SHA-256. Raises as `Mirror.restore` does.
    """
    if not lab.mirror_root:
        return
    Mirror(lab.run_dir, lab.data_dir, lab.mirror_root).restore()
    if (lab.run_dir / "last.pt").exists() and not has_data(lab):
        print("the run's data is not on the mirror: making it again")
        prepare(lab)
        tokenizer_stage(lab)


def update_mirror(lab: Workspace) -> None:
    """Copy changes in the run and its data to the mirror, if there is one. Print the newest step there."""
    if not lab.mirror_root:
        return
    try:
        with run_lock(lab.run_dir), Mirror(lab.run_dir, lab.data_dir, lab.mirror_root) as mirror:
            pass  # the end of the block waits until everything is copied
        print(f"{mirror} in {mirror.mirror_dir}")
    except BlockingIOError as error:  # another session trains the run, and mirrors it, too
        print(f"not copied now: {error}")


def move_aside(lab: Workspace) -> list[Path]:
    """Rename the run's folder and its mirror, so that the run can start again. Return the new paths.

    Nothing is deleted. Raises BlockingIOError if a session is training the run.
    """
    folders = [lab.run_dir] + ([lab.mirror_root / "runs" / lab.run_dir.name] if lab.mirror_root else [])
    moved = []
    for folder in filter(Path.is_dir, folders):
        with run_lock(folder):
            moved.append(folder.rename(aside(folder)))
    return moved


def _with_progress(rows: Iterator[Row], total_steps: int) -> Iterator[Row]:
    """Yield the rows of `train` and show a progress bar. If the caller leaves the loop, `rows` is closed and saves."""
    bar = None
    try:
        for row in rows:
            if bar is None:  # not earlier, so that the bar is below what `train` prints
                start = row.get("resumed_from", 0)
                bar = progress(desc="train", total=total_steps, initial=start, unit=" steps")
            bar.set_postfix(progress_fields(row), refresh=False)
            bar.update(row["step"] - bar.n)
            yield row
    finally:
        rows.close()
        if bar is not None:
            bar.close()


def progress_fields(row: Row) -> dict[str, str]:
    """Return the fields of a row that a progress bar shows beside its step."""
    fields = {"loss": f"{row['train_loss']:.3f}", "tokens_per_second": f"{row['tokens_per_second']:,}"}
    if row["skipped_updates"]:
        fields["skipped_updates"] = f"{row['skipped_updates']:,}"
    if "mirrored_step" in row:
        fields["mirrored"] = "not yet" if row["mirrored_step"] is None else f"to step {row['mirrored_step']:,}"
    return fields
