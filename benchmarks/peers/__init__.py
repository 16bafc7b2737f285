"""The peers on the reference workload; each file runs in an environment that has its library.

They import nothing of prm_jax, and print one JSON object a line.
"""
