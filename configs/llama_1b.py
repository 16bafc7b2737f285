"""Llama-3.2-1B-Instruct with a critic and a PRM, on 8 chips of TPU v6e.

    python -m prm_jax.train --config configs/llama_1b.py --problems.name PROBLEMS.jsonl
    python -m prm_jax.plan --config configs/llama_1b.py --topology v6e-8

The plan's figures (docs/tpu.md): GiB on each chip, of 31.25, with what stays there meanwhile,
and seconds by the compiler's cycles. launch/README.md says how weights come to a slice.
    prm/step             4.82 GiB     0.1641 s
    ppo/sample           5.06 GiB   <= 2.869 s
    ppo/score            6.11 GiB      0.625 s
    ppo/policy_update    7.19 GiB     0.7269 s
    ppo/critic_update    7.20 GiB      0.648 s
    label/respond        7.24 GiB    <= 10.5 s
    label/read           8.67 GiB     0.1619 s
    label/sample         9.84 GiB    <= 52.9 s
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
            path="Llama-3.2-1B-Instruct",
            layers=16,
            embed=2048,
            heads=32,
            kv_heads=8,
            head_dim=64,
            mlp=8192,
            vocab_size=128256,
            max_positions=131072,
            rope=RopeConfig(
                theta=5e5,
                scaling="llama3",
                factor=32.0,
                original_positions=8192,
                low_freq_factor=1.0,
                high_freq_factor=4.0,
            ),
            norm_eps=1e-5,
            tied_embeddings=True,
            dtype="bfloat16",
            remat="full",
            scan_layers=True,
        ),
        mesh=MeshConfig(data=1, fsdp=8, tensor=1),
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
