"""Process reward models for code, by execution, and PPO with them."""

__version__ = "0.1.0"
