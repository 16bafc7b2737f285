"""The whole method with the smallest numbers that still do everything: for tests."""

from prm_jax.config import (
    ChainsConfig,
    Config,
    EvaluateConfig,
    LabelConfig,
    ModelConfig,
    PPOConfig,
    PRMConfig,
    ProblemsConfig,
    SFTConfig,
)


def get_config() -> Config:
    return Config(
        max_prompt_tokens=64,
        max_completion_tokens=32,
        problems=ProblemsConfig(
            chains=ChainsConfig(
                sft_pairs=2_000,
                train=24,
                validation=8,
                test=8,
                sft_horizons=(1, 2),
                train_horizons=(2, 3),
                test_horizons=(1, 3),
                long_horizons=(4, 4),
            )
        ),
        model=ModelConfig(layers=2, embed=48, heads=2, kv_heads=1, head_dim=24, mlp=96),
        sft=SFTConfig(steps=500, batch_size=64, warmup_steps=20, checkpoint_every=200),
        ppo=PPOConfig(steps=4, rollouts=16, checkpoint_every=1),
        label=LabelConfig(
            checkpoints=2, prompts=24, validation_prompts=8, samples_per_prefix=4, wave=2
        ),
        prm=PRMConfig(
            steps=12, batch_size=16, warmup_steps=2, checkpoint_every=4, selection="full"
        ),
        evaluate=EvaluateConfig(samples=2, temperature=1.0, bootstrap=50, inspect=0),
    )
