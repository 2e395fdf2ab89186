"""Tasks of lm-evaluation-harness on local data, which reach no hub."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

from harness_models import PROSE

FACTS = [
    ("What is the capital of France?", ["Paris", "Berlin", "a small town"], 0),
    ("What is the capital of Germany?", ["Paris", "Berlin", "the moon"], 1),
    ("What do cows give?", ["stone", "milk", "music and rain"], 1),
]
SUMS = [("2 + 2", "4"), ("1 + 1", "2")]
TASKS = {
    "facts": """
output_type: multiple_choice
doc_to_text: "Question: {{question}}\\nAnswer:"
doc_to_choice: options
doc_to_target: answer
metric_list:
  - metric: acc
  - metric: acc_norm
""",
    "prose": """
output_type: loglikelihood_rolling
doc_to_text: ""
doc_to_target: "{{text}}"
metric_list:
  - metric: word_perplexity
  - metric: bits_per_byte
""",
    "sums": """
output_type: generate_until
doc_to_text: "{{question}}"
gen_prefix: "="
doc_to_target: answer
generation_kwargs:
  until: ["\\n"]
  max_gen_toks: 6
filter_list:
  - name: number
    filter:
      - function: regex
        regex_pattern: "(-?[0-9]+)"
      - function: take_first
metric_list:
  - metric: exact_match
""",
}


def write_tasks(folder: Path) -> Path:
    """A folder of tasks with their data."""
    data: dict[str, list[dict[str, Any]]] = {
        "facts": [{"question": q, "options": o, "answer": a} for q, o, a in FACTS],
        "prose": [{"text": PROSE * n} for n in (1, 2)],
        "sums": [{"question": question, "answer": answer} for question, answer in SUMS],
    }
    for name, task in TASKS.items():
        lines = "".join(json.dumps(item) + "\n" for item in data[name])
        (folder / f"{name}.jsonl").write_text(lines)
        (folder / f"{name}.yaml").write_text(
            f"task: {name}\ndataset_path: json\ntest_split: test\nfewshot_split: test\n"
            f"dataset_kwargs:\n  data_files:\n    test: {folder / name}.jsonl\n{task}"
        )
    return folder


def run_offline(folder: Path, *arguments: str) -> str:
    """Output of Python in a process of its own that can reach no hub."""
    offline = {"HF_HUB_OFFLINE": "1", "HF_DATASETS_OFFLINE": "1", "HF_HOME": str(folder / "hf")}
    done = subprocess.run(
        [sys.executable, *arguments],
        env=os.environ | offline | {"TQDM_DISABLE": "1"},
        cwd=folder,
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    return done.stdout
