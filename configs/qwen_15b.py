"""Qwen2.5-Coder-1.5B-Instruct with a critic and a PRM, on 16 chips of TPU v5e.

    python -m prm_jax.train --config configs/qwen_15b.py --problems.name PROBLEMS.jsonl
    python -m prm_jax.plan --config configs/qwen_15b.py --topology v5e-16

The plan's figures (docs/tpu.md): GiB on each chip, of 15.75, with what stays there meanwhile,
and seconds by the compiler's cycles. launch/README.md says how weights come to a slice.
    prm/step             2.80 GiB     0.3038 s
    ppo/sample           3.19 GiB   <= 3.725 s
    ppo/score            4.47 GiB     0.9392 s
    ppo/policy_update    4.62 GiB      1.292 s
    ppo/critic_update    4.56 GiB      1.166 s
    label/respond        3.19 GiB   <= 10.46 s
    label/read           3.93 GiB     0.2631 s
    label/sample         4.46 GiB   <= 48.51 s
"""

from prm_jax.config import (
    Config,
    LabelConfig,
    MeshConfig,
    ModelConfig,
    PPOConfig,
    PRMConfig,
    PromptsConfig,
    RopeConfig,
    SFTConfig,
)


def get_config() -> Config:
    return Config(
        max_prompt_tokens=1024,
        max_completion_tokens=1024,
        device_batch=512,
        decode_rows=512,
        prompts=PromptsConfig(style="chat_fence"),
        model=ModelConfig(
            path="Qwen2.5-Coder-1.5B-Instruct",
            layers=28,
            embed=1536,
            heads=12,
            kv_heads=2,
            head_dim=128,
            mlp=8960,
            vocab_size=151936,
            max_positions=32768,
            rope=RopeConfig(theta=1e6),
            qkv_bias=True,
            tied_embeddings=True,
            dtype="bfloat16",
            remat="full",
            scan_layers=True,
        ),
        mesh=MeshConfig(data=1, fsdp=16, tensor=1),
        sft=SFTConfig(steps=0),
        ppo=PPOConfig(
            steps=100,
            rollouts=128,
            samples_per_prompt=4,
            minibatches=4,
            learning_rate=1e-6,
            critic_learning_rate=1e-5,
        ),
        label=LabelConfig(prompts=512, samples_per_prefix=20, wave=4),
        prm=PRMConfig(steps=500, batch_size=32, learning_rate=1e-5),
    )
