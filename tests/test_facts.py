"""Every fact of the chapter that the course accompanies has a cell: text that states it, and code that shows it."""

import pytest

from notebooks import READ

# fact: notebook, code cell, words that the text before it or the cell itself must have, code that the cell must have
FACTS = {
    "the data: the first 200M of 470M tokens": ("01_prepare", "budget-table", "470M tokens", "200_000_000"),
    "20 tokens per parameter": ("01_prepare", "budget-table", "20 tokens per parameter", "budget("),
    "the times on T4 and A100 are the chapter's": ("01_prepare", "budget-table", "2.8 hours", "machine_speeds"),
    "the split, and why there is a validation set": ("01_prepare", "check-splits", "by heart", "intersection"),
    "byte-pair encoding": ("02_tokenizer", "bpe-by-hand", "most frequent pair", "Counter"),
    "8,000 tokens from 100,000 stories": ("02_tokenizer", "train-bpe", "8,000 tokens from 100,000", "8_000"),
    "two special tokens, all bytes, no prefix space": ("02_tokenizer", "train-bpe", "No space is added", "train_token"),
    "ids of two bytes; a list takes gigabytes": ("02_tokenizer", "write-bins", "uint16", "getsizeof"),
    "end-of-text tokens": ("02_tokenizer", "write-bins", "It has two purposes", "write_bin"),
    "the token count (exercise 1)": ("02_tokenizer", "write-bins", "first exercise", "train.tokens"),
    "windows and targets": ("02_tokenizer", "window-diagram", "one place later", "windows("),
    "random windows: 43% of the data, not 0.04%": ("02_tokenizer", "seen-share", "0.04%", "seen.mean()"),
    "the loss": ("02_tokenizer", "loss-by-hand", "minus the logarithm", "F.cross_entropy"),
    "failure 1: a token id that is too high": ("02_tokenizer", "mistakes-caught", "token ids", "get_vocab_size() - 1"),
    "failure 2: no memory mapping": ("02_tokenizer", "mistakes-caught", "cannot map files", "numpy.memmap"),
    "failure 3: seq_len above max_len": (
        "02_tokenizer",
        "mistakes-caught",
        "longer than the longest text",
        "check_seq_len",
    ),
    "(B, T, C)": ("03_train", "build", "(B, T, C)", "tok_emb(x).shape"),
    "RMSNorm": ("03_train", "pieces-by-hand", "root of the mean square", "square().mean"),
    "SwiGLU": ("03_train", "pieces-by-hand", "SiLU", "torch.sigmoid(gate)"),
    "tied embedding, no biases, no dropout": ("03_train", "build", "rows of the embedding", "model.head is None"),
    "9,952,320 parameters": ("03_train", "count-by-hand", "Add up the parameters", "count_parameters"),
    "the first loss is ln(V), and 301 as listed": ("03_train", "first-loss-check", "the first loss is 301", "std=1.0"),
    "AdamW and its two groups": ("03_train", "optimizer-groups", "AdamW", "param_groups"),
    "weight decay, and the filter that misses": ("03_train", "optimizer-groups", "'embed' in name", '"embed" in name'),
    "warm-up and cosine to a tenth": ("03_train", "optimizer-groups", "warm-up", "lr_curve"),
    "clipping": ("03_train", "plain-loop", "Clipping", "clip_grad_norm_"),
    "gradient accumulation": ("03_train", "plain-loop", "gradient accumulation", "backward()"),
    "the training loop, 500 steps (exercise 2)": ("03_train", "plain-loop", "forget the gradients", "optimizer.step()"),
    "what a checkpoint holds": ("03_train", "train-same", "checkpoint holds everything", "last.pt holds"),
    "why a resume is exact": ("03_train", "train-same", "resume is exact", "session == 1"),
    "the log, last.pt, step_NNNNN.pt, final.pt": ("03_train", "train-same", "step_NNNNN.pt", "train("),
    "failure 6: RoPE's tables are not saved": ("03_train", "train-same", "computed again", '"cos"'),
    "float16, its scaler, and bfloat16": ("03_train", "precision-table", "GradScaler", "torch.float16"),
    "failure 5: a Colab disconnect": ("03_train", "train-loop", "takes the machine away", "train_run"),
    "five patterns of curves": ("03_train", "provoke-patterns", "spiking", "demonstrate"),
    "five prompts": ("04_generate", "load", "five prompts", "prompts_for"),
    "temperature and top_k": ("04_generate", "four-tokens", "Temperature", "top_k"),
    "sampling at 0.8 and 50, 120 tokens": ("04_generate", "sampling-by-hand", "draw a token", "0.8, 50"),
    "failure 7: repetition at temperature 0": ("04_generate", "greedy-repeats", "seventh warning", "(0, 0.8)"),
    "three temperatures (exercise 3)": ("04_generate", "compare-temperatures", "third exercise", "0.5, 0.8, 1.2"),
    "the causal mask": ("04_generate", "attention-by-hand", "causal mask", "triu"),
    "RoPE": ("04_generate", "attention-by-hand", "RoPE", "apply_rope"),
    "ten samples after training": ("04_generate", "keep-ten", "two for each prompt", "save_samples"),
    "the chapter's results": ("05_retrospective", "run-table", "three runs", "chapter_results"),
    "the loss by step: 8.99 to 2.45": ("05_retrospective", "curve-plot", "8.99", "chapter=comparable"),
    "perplexity of 2.45 (exercise 5)": (
        "05_retrospective",
        "perplexity-figures",
        "e to the power of the loss",
        "math.exp",
    ),
    "2.45 is 0.86 bits per byte": ("05_retrospective", "public-table", "0.86", "public_results"),
    "rating stories (exercise 4)": ("05_retrospective", "rate-form", "from 0 to 5", "rating_form"),
    "failure 8: a plateau": ("05_retrospective", "what-if", "plateau", "500e6"),
    "the retrospective": ("05_retrospective", "what-if", "2.30", "30e6"),
    "the checklist": ("05_retrospective", "report-write", "tokenizer.json", "checklist"),
    "optional: W&B and TensorBoard": ("06_beyond", "trackers-both", "W&B", "to_tensorboard"),
}


@pytest.mark.parametrize("fact", FACTS)
def test_every_fact_of_the_chapter_has_text_and_code(fact):
    name, cell_id, words, code = FACTS[fact]
    cells = READ[name].cells
    (place,) = [place for place, cell in enumerate(cells) if cell.cell_type == "code" and cell.id == cell_id]
    text = " ".join((cells[place - 1].source + cells[place].source).split())
    assert words in text and code in cells[place].source
