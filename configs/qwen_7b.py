"""Qwen2.5-Coder-7B-Instruct with a critic and a PRM, on 64 chips of TPU v5e.

    python -m prm_jax.train --config configs/qwen_7b.py --problems.name PROBLEMS.jsonl
    python -m prm_jax.plan --config configs/qwen_7b.py --topology v5e-64

The plan's figures (docs/tpu.md): GiB on each chip, of 15.75, with what stays there meanwhile,
and seconds by the compiler's cycles. launch/README.md says how weights come to a slice.
    prm/step             3.84 GiB     0.6123 s
    ppo/sample           4.43 GiB   <= 4.484 s
    ppo/score            4.94 GiB      2.198 s
    ppo/policy_update    6.43 GiB      2.539 s
    ppo/critic_update    6.36 GiB      2.409 s
    label/respond        5.47 GiB   <= 16.67 s
    label/read           4.77 GiB      0.712 s
    label/sample         4.41 GiB    <= 63.9 s
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
        device_batch=1024,
        decode_rows=1024,
        prompts=PromptsConfig(style="chat_fence"),
        model=ModelConfig(
            path="Qwen2.5-Coder-7B-Instruct",
            layers=28,
            embed=3584,
            heads=28,
            kv_heads=4,
            head_dim=128,
            mlp=18944,
            vocab_size=152064,
            max_positions=32768,
            rope=RopeConfig(theta=1e6),
            qkv_bias=True,
            tied_embeddings=False,
            dtype="bfloat16",
            remat="full",
            scan_layers=True,
        ),
        mesh=MeshConfig(data=1, fsdp=64, tensor=1),
        sft=SFTConfig(steps=0),
        ppo=PPOConfig(
            steps=100,
            rollouts=256,
            samples_per_prompt=4,
            minibatches=4,
            learning_rate=1e-6,
            critic_learning_rate=1e-5,
        ),
        label=LabelConfig(prompts=512, samples_per_prefix=20, wave=4),
        prm=PRMConfig(steps=500, batch_size=64, learning_rate=1e-5),
    )
