"""Host loops, one per stage: each reads what earlier stages left in the workdir."""
