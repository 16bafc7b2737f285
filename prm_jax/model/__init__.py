"""The transformer, its heads, and what is read from them: log-probs, values and scores."""
