"""TRL 1.12 and Hugging Face generate: `python with_torch.py ppo|sampler ROUNDS`.

python3.12 -m venv ENV && ENV/bin/pip install torch==2.13.0 transformers datasets trl==1.12.0
"""

import itertools
import json
import os
import resource
import sys
import tempfile
import time

os.environ.update(HF_HUB_OFFLINE="1", TRANSFORMERS_OFFLINE="1", TOKENIZERS_PARALLELISM="false")
import numpy as np
import torch
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import (
    PreTrainedTokenizerFast,
    Qwen2Config,
    Qwen2ForCausalLM,
    Qwen2ForSequenceClassification,
)

VOCAB, PAD, ENDS = 1024, 1023, list(range(1, 21))
CONFIG = {
    "vocab_size": VOCAB, "hidden_size": 256, "num_hidden_layers": 4, "num_attention_heads": 4,
    "num_key_value_heads": 2, "intermediate_size": 1024, "max_position_embeddings": 1024,
    "tie_word_embeddings": False, "bos_token_id": 0, "eos_token_id": None, "pad_token_id": PAD,
}  # fmt: skip


def say(**fields):
    print(json.dumps(fields), flush=True)


def cpu_s():
    usage = resource.getrusage(resource.RUSAGE_SELF)
    return usage.ru_utime + usage.ru_stime


def policy():
    return Qwen2ForCausalLM(Qwen2Config(**CONFIG)).float()


def prompts(n, tokens, seed):
    return np.random.default_rng(seed).integers(1, PAD, (n, tokens))


def ppo(iterations, b=64, p=64, c=128):
    from datasets import Dataset
    from trl.experimental.ppo import PPOConfig, PPOTrainer

    def scalar():
        return Qwen2ForSequenceClassification(Qwen2Config(**CONFIG, num_labels=1)).float()

    words = Tokenizer(models.WordLevel({str(i): i for i in range(VOCAB + 1)}, unk_token="0"))
    words.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=words, pad_token=str(PAD), eos_token=str(VOCAB), bos_token="0"
    )
    tokenizer.padding_side = "left"
    ids = prompts(b * (iterations + 1), p, 0).tolist()  # iteration 0 warms up
    with tempfile.TemporaryDirectory() as folder:
        trainer = PPOTrainer(
            args=PPOConfig(
                output_dir=folder, per_device_train_batch_size=b, gradient_accumulation_steps=1,
                num_mini_batches=1, num_ppo_epochs=1, total_episodes=b * (iterations + 1),
                response_length=c, local_rollout_forward_batch_size=b, temperature=1.0,
                report_to=[], use_cpu=True, bf16=False, gradient_checkpointing=False,
                num_sample_generations=0, save_strategy="no", learning_rate=1e-4, logging_steps=1,
            ),
            processing_class=tokenizer,
            model=policy(),
            ref_model=policy(),
            reward_model=scalar(),
            value_model=scalar(),
            train_dataset=Dataset.from_dict({"input_ids": ids}),
        )  # fmt: skip
        marks = [(cpu_s(), time.perf_counter())]
        trainer.log = lambda *_, **__: marks.append((cpu_s(), time.perf_counter()))
        trainer.train()
    print()  # what the trainer printed may have left its line open
    for i, (before, after) in enumerate(itertools.pairwise(marks)):
        say(iteration=i, cpu_s=after[0] - before[0], wall_s=after[1] - before[1])
    say(peak_gib=resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20)


def sampler(rounds):
    made = policy().eval()

    def run(name, b, p, c, batches, **settings):
        for round_number in range(rounds + 1):
            start_cpu_s, start_s, tokens = cpu_s(), time.perf_counter(), 0
            for batch in range(batches):
                ids = torch.tensor(prompts(b, p, batch))
                torch.manual_seed(100 * round_number + batch)
                with torch.no_grad():
                    out = made.generate(
                        input_ids=ids, attention_mask=torch.ones_like(ids), do_sample=True,
                        top_k=0, top_p=1.0, temperature=1.0, max_new_tokens=c, pad_token_id=PAD,
                        **settings,
                    )[:, p:]  # fmt: skip
                ended = torch.isin(out, torch.tensor(settings.get("eos_token_id", [VOCAB])))
                before = ended.cumsum(1) - ended.int()
                tokens += int((before == 0).sum())
            if round_number:
                say(workload=name, tokens=tokens, cpu_s=cpu_s() - start_cpu_s,
                    wall_s=time.perf_counter() - start_s)  # fmt: skip

    run("full length", 64, 64, 128, 1, min_new_tokens=128)
    run("ends early", 64, 64, 128, 4, eos_token_id=ENDS)
    run("eight of each prefix", 64, 512, 64, 1, min_new_tokens=64)


if __name__ == "__main__":
    torch.set_num_threads(2)
    torch.manual_seed(0)
    {"ppo": ppo, "sampler": sampler}[sys.argv[1]](int(sys.argv[2]))
