"""Records the logits of transformers for the tiny checkpoints: python tests/data/make_... .py

Needs the extra `peers`. The file that it writes lets the default tests compare with transformers'
numbers on a machine without torch.
"""

import json
import sys
import tempfile
from pathlib import Path

import torch
import transformers

sys.path.insert(0, str(Path(__file__).parents[1]))
import tiny_checkpoints

recorded = {"transformers": transformers.__version__, "tokens": tiny_checkpoints.batch()}
for name, config in tiny_checkpoints.CONFIGS.items():
    with tempfile.TemporaryDirectory() as folder:
        path = tiny_checkpoints.write(Path(folder) / "model", config)
        model = transformers.AutoModelForCausalLM.from_pretrained(path, dtype=torch.float32)
    rows = []
    for tokens in recorded["tokens"]:
        with torch.no_grad():
            logits = model(torch.tensor([tokens])).logits[0]
        rows.append([[float(f"{x:.7g}") for x in row] for row in logits.tolist()])
    recorded[name] = rows
path = Path(__file__).with_name("transformers_logits.json")
path.write_text(json.dumps(recorded) + "\n", encoding="utf-8")
