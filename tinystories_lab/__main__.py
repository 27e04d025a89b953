"""The same five stages from a shell: python -m tinystories_lab [run|prepare|tokenizer|train|generate|retrospective]."""

import argparse
import sys
import time
import warnings
from itertools import islice
from pathlib import Path

import torch
from tqdm import tqdm

from tinystories_lab.checkpoint import load_model
from tinystories_lab.device import choose_device, choose_dtype
from tinystories_lab.generate import PROMPTS, tell_samples
from tinystories_lab.model import GPTMini
from tinystories_lab.presets import PRESET_VARIABLE, PRESETS, Workspace, plan_workspace, save_config
from tinystories_lab.review import bits_per_byte, checklist, perplexity, save_samples, story_metrics
from tinystories_lab.runlog import diagnose, read_log, read_rows
from tinystories_lab.stories import load_stories, open_stories
from tinystories_lab.tokenizer import BinInfo, load_tokenizer, read_bin, save_tokenizer, train_tokenizer, write_bin
from tinystories_lab.trainer import train


def prepare(lab: Workspace) -> None:
    """stories -> cleaned and split"""
    _, report = load_stories(lab.source, lab.data_dir, max_stories=lab.preset.max_stories)
    print(report)


def tokenizer(lab: Workspace) -> None:
    """cleaned stories -> tokenizer.json, train.bin, val.bin"""
    stories, report = open_stories(lab.data_dir)
    made = lab.data_dir / "val.json"  # written last
    if not made.exists() or made.stat().st_mtime < (lab.data_dir / "stories" / "report.json").stat().st_mtime:
        learn_from = islice(stories["train"]["text"], lab.preset.tokenizer_stories)
        bpe = train_tokenizer(learn_from, lab.preset.model.vocab_size)
        save_tokenizer(bpe, lab.data_dir / "tokenizer.json")
        write_bin(lab.data_dir / "train.bin", stories["train"]["text"], bpe, lab.preset.max_tokens, report.source)
        write_bin(lab.data_dir / "val.bin", stories["validation"]["text"], bpe, source=report.source)
    for name in ("train.bin", "val.bin"):
        info = BinInfo.of(lab.data_dir / name)
        print(f"{name}: {info.tokens:,} tokens of {info.stories:,} stories, {info.bytes_per_token:.2f} bytes a token")


def train_stage(lab: Workspace) -> None:
    """train.bin -> last.pt, final.pt, loss.jsonl, samples from before and after"""
    model_config, config = lab.model_config, lab.preset.train
    device, why_device = choose_device()
    _, why_dtype = choose_dtype(device)
    rows = train(lab.run_dir, lab.data_dir, model_config, config)
    bpe = load_tokenizer(lab.data_dir / "tokenizer.json")
    torch.manual_seed(config.seed)  # as `train` does, so these are the weights that the run starts from
    untrained = GPTMini(model_config)
    print(f"{untrained.count_parameters():,} parameters; {why_device}; {why_dtype}")
    if not read_rows(lab.run_dir / "samples.jsonl"):
        save_samples(lab.run_dir, "before", tell_samples(untrained, bpe, lab.preset.sample_tokens))
    save_config(lab)
    with tqdm(desc="train", total=config.total_steps, unit=" steps") as bar:
        for row in rows:
            bar.update(row["step"] - bar.n)
            bar.set_postfix(loss=f"{row['train_loss']:.3f}", tokens_per_second=f"{row['tokens_per_second']:,}")
    print(f"finished: {lab.run_dir / 'final.pt'}")


def generate(lab: Workspace) -> None:
    """final.pt -> ten stories in samples.jsonl"""
    model = load_model(lab.run_dir / "final.pt", choose_device()[0])
    samples = tell_samples(model, load_tokenizer(lab.run_dir / "tokenizer.json"), lab.preset.sample_tokens)
    save_samples(lab.run_dir, "after", samples)
    print(f"{len(samples)} stories kept in {lab.run_dir / 'samples.jsonl'}")


def retrospective(lab: Workspace) -> None:
    """the run's files -> loss_curve.png and the report"""
    from tinystories_lab.notebook.plots import loss_curve  # matplotlib is needed here only

    rows = read_log(lab.run_dir / "loss.jsonl")
    validated = [row for row in rows if "val_loss" in row]
    if not validated:
        raise FileNotFoundError(
            f"no finished evaluation in {lab.run_dir / 'loss.jsonl'}: run 03_train (or `train` in the shell) first"
        )
    vocab_size = lab.model_config.vocab_size
    loss_curve(rows, vocab_size).savefig(lab.run_dir / "loss_curve.png", dpi=120, bbox_inches="tight")
    last, loss = rows[-1], validated[-1]["val_loss"]
    held_out = BinInfo.of(lab.data_dir / "val.bin")
    found = diagnose(rows, vocab_size)
    print(f"\nRun {lab.run_dir.name}")
    print(f"  tokens      {last['tokens']:,} seen of {BinInfo.of(lab.data_dir / 'train.bin').tokens:,} in train.bin")
    print(f"  parameters  {load_model(lab.run_dir / 'final.pt').count_parameters():,}")
    print(
        f"  loss        {rows[0]['train_loss']:.3f} untrained, {last['train_loss']:.3f} last batch, {loss:.3f} validation"
    )
    print(
        f"              perplexity {perplexity(loss):.2f}, {bits_per_byte(loss, held_out.bytes_per_token):.3f} bits a byte"
    )
    print(
        f"  time        {last['seconds']:,.0f} s of training, {last['tokens'] / max(last['seconds'], 0.01):,.0f} tokens a second"
    )
    print(f"  pattern     {found.pattern}: {found.evidence}")
    told = [row["story"] for row in read_rows(lab.run_dir / "samples.jsonl") if row["when"] == "after"]
    if told:
        reference = islice(read_bin(lab.data_dir / "train.bin", load_tokenizer(lab.run_dir / "tokenizer.json")), 5_000)
        metrics = story_metrics(told, reference)
        print("  stories     " + ", ".join(f"{name} {value:.2f}" for name, value in metrics.items()))
    print(
        "  checklist   "
        + "; ".join(f"{'done' if done else 'open'}: {item}" for item, done in checklist(lab.run_dir).items())
    )
    print(f"  files       {lab.run_dir.resolve()} and {lab.data_dir.resolve()}")


STAGES = {
    "prepare": prepare,
    "tokenizer": tokenizer,
    "train": train_stage,
    "generate": generate,
    "retrospective": retrospective,
}


def main(arguments: list[str] | None = None) -> int:
    """Run the command line; returns the exit status: 0 done, 1 with one sentence why not, 2 wrong usage, 130 stopped."""
    parser = argparse.ArgumentParser(
        prog="python -m tinystories_lab",
        description="Train a small language model on stories, in five stages; `run`, the default, is all of them.",
        epilog="Finished work is not done again, and training goes on from its last checkpoint. All files lie in "
        "data/ and runs/ below the current folder.\n\n"
        + "\n".join(f"  {name:14}{stage.__doc__}" for name, stage in STAGES.items()),
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("stage", nargs="?", default="run", choices=["run", *STAGES])
    parser.add_argument(
        "--preset",
        default="auto",
        metavar="P",
        help=f"{', '.join(PRESETS)}, or auto: ${PRESET_VARIABLE}, else by the hardware",
    )
    parser.add_argument(
        "--source",
        default="auto",
        metavar="S",
        help="tinystories, toyland, or a .txt, .jsonl or .parquet file (.gz too)",
    )
    parser.add_argument("--run", default="auto", metavar="NAME", help="folder below runs/ (default: <source>-<preset>)")
    parser.add_argument(
        "--data", default="auto", metavar="NAME", help="folder below data/ (default: <source>-<preset>)"
    )
    options = parser.parse_args(arguments)
    warnings.showwarning = lambda message, *_: print(f"note: {message}", file=sys.stderr)
    started, saved = time.perf_counter(), None
    try:
        lab = plan_workspace(Path(), options.preset, options.source, options.run, options.data)
        saved = lab.run_dir / "last.pt"
        print(f"preset {lab.preset.name}, source {lab.source}: {lab.data_dir} -> {lab.run_dir}")
        for stage in STAGES.values() if options.stage == "run" else [STAGES[options.stage]]:
            stage(lab)
    except (OSError, ValueError, FloatingPointError) as error:
        print(f"\n{error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        kept = f"training is saved in {saved}" if saved and saved.exists() else "finished stages are kept"
        print(f"\nstopped; {kept}; the same command goes on from there", file=sys.stderr)
        return 130
    if options.stage in ("run", "generate"):
        told = [row for row in read_rows(lab.run_dir / "samples.jsonl") if row["when"] == "after"][: len(PROMPTS)]
        print(f"\ndone in {time.perf_counter() - started:.0f} s; the five stories:")
        print("\n\n".join(row["story"] + ("" if row["ended"] else " ...") for row in told))
    return 0


if __name__ == "__main__":
    sys.exit(main())
