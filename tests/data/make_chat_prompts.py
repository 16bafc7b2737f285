"""Records what transformers' apply_chat_template writes: python tests/data/make_chat_prompts.py

Needs the extra `peers`. The file that it writes lets the default tests compare with transformers
on a machine without it.
"""

import json
import sys
import tempfile
from pathlib import Path
from types import SimpleNamespace

import transformers
from transformers.utils import chat_template_utils

sys.path.insert(0, str(Path(__file__).parents[1]))
import chats

chat_template_utils.datetime = SimpleNamespace(now=lambda: chats.DATE)
recorded = {"transformers": transformers.__version__}
for name, template in chats.TEMPLATES.items():
    with tempfile.TemporaryDirectory() as folder:
        chats.tokenizer(Path(folder), template)
        tokenizer = transformers.PreTrainedTokenizerFast.from_pretrained(folder)
    rows = []
    for system in chats.SYSTEMS:
        for instruction in chats.INSTRUCTIONS:
            messages = [{"role": "system", "content": system}] if system else []
            messages.append({"role": "user", "content": instruction})
            text = tokenizer.apply_chat_template(
                messages, tokenize=False, add_generation_prompt=True
            )
            ids = tokenizer.apply_chat_template(
                messages, tokenize=True, add_generation_prompt=True, return_dict=False
            )
            rows.append({"text": text, "ids": ids})
    recorded[name] = rows
path = Path(__file__).with_name("chat_prompts.json")
path.write_text(json.dumps(recorded) + "\n", encoding="utf-8")
