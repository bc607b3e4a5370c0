"""The policy with one of its rules switched off: `scripts/mutation` does that to every rule in turn, and a unit test must fail."""
